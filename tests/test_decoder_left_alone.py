"""What wrapping and asking a decoder leaves behind in the caller's model, its condition and other decoders: nothing."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import prune

from posthoc_metric.decoder import Decoder
from posthoc_metric.errors import DecoderError


def latents(rows=6, dim=2):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layers(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), *between, nn.Tanh(), nn.Linear(8, 5))


class Waiting(nn.Module):
    """Passes on what comes in; in the first of two threads only after the second is inside, and the other way round."""

    def __init__(self):
        super().__init__()
        self.first_inside, self.second_inside, self.first_left = (threading.Event() for _ in range(3))

    def forward(self, x):
        name = threading.current_thread().name
        if name == "first":
            self.first_inside.set()
            self.second_inside.wait(10)
        elif name == "second":
            self.second_inside.set()
            self.first_left.wait(10)
        return x


def test_two_decoders_of_one_model_in_train_mode_do_not_disturb_each_other():
    waiting = Waiting()
    model = layers(waiting, nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    one, other = Decoder(model), Decoder(model)
    z, found = latents(), {}
    right, mean = other(z), model[2].running_mean.clone()

    def first():
        one(z)
        waiting.first_left.set()

    def second():
        waiting.first_inside.wait(10)
        found["second"] = other(z)

    threads = [threading.Thread(target=work, name=work.__name__) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found["second"], right) and torch.equal(model[2].running_mean, mean)
    assert all(module.training for module in model.modules())


class Keeping(nn.Module):
    """Keeps its last activation, as one that is to be looked at."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.last = self.seen = x.tanh()
        return self.last


class KeepingSeveral(nn.Module):
    """As those do whose layers' activations are to be looked at."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.seen = kind, {} if kind == "entry" else []
        self.elsewhere = self.seen

    def forward(self, x):
        x = x.tanh()
        if self.kind == "entry":
            self.seen["x"] = x
        elif self.kind == "growing":
            self.seen.append(x)
        else:
            self.seen = [x] if self.kind == "list" else (x,)
        return x


def weight_normed():
    model = layers()
    nn.utils.weight_norm(model[0])
    return model


def pruned():
    model = layers()
    prune.l1_unstructured(model[0], "weight", 0.2)
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        *(weight_normed, pruned, lambda: layers(Keeping())),
        *(lambda kind=kind: layers(KeepingSeveral(kind)) for kind in ("entry", "list", "tuple", "growing")),
    ],
)
def test_a_model_that_writes_to_itself_can_be_copied_and_pickled_afterwards(make):
    model = make().eval()
    decoder, z = Decoder(model), latents()
    decoder.in_float64().jacobian(z), decoder.vjp(z, decoder(z)), decoder.jvp(z, z), decoder.jacobian(z)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(z.float()), model(z.float()))
    assert torch.equal(pickle.loads(pickle.dumps(decoder))(z), decoder(z))


def test_what_a_model_keeps_of_a_plain_call_stays():
    model, z = layers(Keeping(), KeepingSeveral("entry")).eval(), latents()
    decoder = Decoder(model)
    decoder.jacobian(z)
    decoder(z)
    hidden = model[0](z.float())
    assert torch.equal(model[1].last, hidden.tanh()) and torch.equal(model[1].seen, hidden.tanh())
    assert torch.equal(model[2].elsewhere["x"], hidden.tanh().tanh())


class Detaching(nn.Sequential):
    def forward(self, z):
        return super().forward(z.detach())


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.DerivativeWarning")
def test_derivatives_of_a_copy_are_refused_once_the_weights_have_changed():
    model, z = Detaching(*layers()), latents()
    decoder = Decoder(model)
    assert decoder.jacobian(z).any() and pickle.loads(pickle.dumps(decoder)).jacobian(z).any()
    model.load_state_dict({name: 2 * weight for name, weight in model.state_dict().items()})
    asked = (decoder.jacobian, lambda z: decoder.jvp(z, z), lambda z: decoder.vjp(z, decoder(z)))
    for ask in asked:
        with pytest.raises(DecoderError, match="weights changed after it was wrapped.*again"):
            ask(z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_copy_of_a_half_precision_model_is_refused_once_the_weights_have_changed(dtype):
    model, z = layers().to(dtype), latents()
    decoder = Decoder(model)
    asked = (decoder, decoder.jacobian, decoder.isometric(), decoder.in_float64(), copy.deepcopy(decoder))
    for ask in asked:
        ask(z)
    model.load_state_dict({name: 2 * weight for name, weight in model.state_dict().items()})
    for ask in asked:
        with pytest.raises(DecoderError, match="weights changed after it was wrapped.*again"):
            ask(z)


class InPlace(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = nn.Linear(3, 5), change

    def forward(self, z, library):
        return self.net(torch.cat([z, self.change(library)], -1)).sin()


@pytest.mark.parametrize("change", [lambda c: c.sub_(1.0), lambda c: c.contiguous().clamp_(max=0.5)])
def test_a_condition_is_not_written_to(change):
    library, z = torch.full((1, 1), 3.0), latents()
    decoder = Decoder(InPlace(change), latent_dim=2, condition=library)
    assert torch.equal(decoder(z), decoder(z)) and float(library) == 3.0


class Switching(nn.Module):
    """Chooses other weights in ``train``, as one that averages them does."""

    def __init__(self):
        super().__init__()
        self.net, self.averaged, self.chosen = nn.Linear(2, 5), nn.Linear(2, 5), "net"

    def train(self, mode=True):
        super().train(mode)
        self.chosen = "net" if mode else "averaged"
        return self

    def forward(self, z):
        return getattr(self, self.chosen)(z).sin()


def test_a_model_whose_own_eval_does_more_is_to_be_called_by_its_owner():
    model = Switching().train()
    with pytest.raises(DecoderError, match=r"Call model\.eval\(\) before wrapping it"):
        Decoder(model, latent_dim=2)
    assert model.training and model.chosen == "net"
    z = latents()
    assert torch.equal(Decoder(model.eval(), latent_dim=2)(z), model(z.float()).double())


def test_a_reused_buffer_is_no_output():
    weights, buffer = np.random.default_rng(0).normal(size=(2, 6)), np.empty((4096, 6))

    def decode(z):
        return np.tanh(np.asarray(z) @ weights, out=buffer[: len(z)])

    with pytest.warns(match="finite differences"):
        decoder = Decoder(decode, latent_dim=2)
    z = latents()
    first, kept = decoder(z), decoder(z).clone()
    decoder(z + 1)
    assert torch.equal(first, kept)


def test_a_numpy_function_over_a_module_is_handed_arrays():
    model, z = layers().eval(), latents()

    def decode(z):
        with torch.no_grad():
            return model(torch.from_numpy(z).float()).numpy()

    with pytest.warns(match="finite differences"):
        decoder = Decoder(decode, latent_dim=2)
    assert "is handed NumPy arrays" in decoder.describe()
    assert torch.allclose(decoder.jacobian(z), Decoder(model).jacobian(z), atol=1e-2)


def test_an_ensemble_over_the_skeleton_of_its_members():
    models, z = [layers(), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))], latents()
    # members of one shape
    models[0] = copy.deepcopy(models[1])
    nn.init.normal_(models[0][0].weight)
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")

    def mean(z):
        one = vmap(lambda p, b: functional_call(skeleton, (p, b), (z,)))
        return one(parameters, buffers).mean(0)

    decoder = Decoder(mean, latent_dim=2)
    expected = sum(Decoder(model).jacobian(z) for model in models) / 2
    assert torch.allclose(decoder.jacobian(z), expected, atol=1e-6)
    with pytest.raises(DecoderError, match="meta device"):
        Decoder(skeleton, latent_dim=2)


@pytest.mark.parametrize("centres", [7, 26])
def test_distances_to_any_number_of_centres_have_a_slope_at_them(centres):
    torch.manual_seed(0)
    places, out = torch.randn(centres, 2), nn.Linear(centres, 5)
    decoder = Decoder(lambda z: out(torch.exp(-(torch.cdist(z, places) ** 2) / 4)), latent_dim=2)
    assert "explicit distances" in decoder.describe()
    assert torch.isfinite(decoder.jacobian(places[:3])).all()


def test_weights_do_not_count_as_memory_of_a_row():
    weights = torch.randn(2000, 8)
    first = layers()
    plain, product = nn.Sequential(*first, nn.Linear(5, 8), nn.Linear(8, 2000)), nn.Sequential(*first, nn.Linear(5, 8))
    one = Decoder(plain)._engine.found.row_bytes
    assert Decoder(lambda z: product(z) @ weights.T, latent_dim=2)._engine.found.row_bytes == one


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_few_latents_to_probe_at_beside_a_pole(rows):
    def decode(z):
        return torch.cat([z.sin(), torch.relu(z[:, :1]).sqrt()], 1)

    with pytest.raises(DecoderError) as caught:
        Decoder(decode, latent_dim=2, probe=-1 - latents(rows).abs())
    assert caught.value.rows == tuple(range(min(rows, 4)))
    if rows > 1:
        beside = 1 + latents(rows).abs()
        beside[0] = -1.3
        with pytest.warns(match="NaN or infinite at"):
            Decoder(decode, latent_dim=2, probe=beside)


@pytest.mark.parametrize("moved", [nn.Module.half, nn.Module.double])
def test_a_model_that_was_given_another_precision_after_it_was_wrapped_is_named(moved):
    module = layers()
    decoder, z = Decoder(module), latents()
    moved(module)
    for call in (decoder, decoder.jacobian):
        with pytest.raises(DecoderError, match="another precision or device after it was wrapped.*deepcopy"):
            call(z)
    module.float()
    assert decoder.jacobian(z).shape == (6, 5, 2)


class Initialising(nn.Module):
    """Shifts by the mean of the first batch that it sees, as the flows' activation norms do."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))
        self.register_buffer("initialized", torch.tensor(0))

    def forward(self, z):
        if self.initialized.item() == 0:
            self.shift.data.copy_(-z.mean(0))
            self.initialized.fill_(1)
        return torch.sin(z + self.shift)


def test_a_layer_that_initialises_itself_from_the_first_batch_is_not_given_the_probes():
    module = Initialising()
    with pytest.raises(DecoderError, match="sets shift anew.*initialized.*call the model once on latents of yours"):
        Decoder(module, latent_dim=2)
    assert module.shift.tolist() == [0.0, 0.0] and module.initialized.item() == 0
    module(latents())
    shift = module.shift.clone()
    Decoder(module, latent_dim=2)
    assert torch.equal(module.shift, shift)


def test_weights_that_are_no_numbers_are_not_taken_for_weights_set_anew():
    module = layers()
    with torch.no_grad():
        module[0].bias[0] = torch.nan
    with pytest.raises(DecoderError, match="finite"):
        Decoder(module, latent_dim=2)


def test_a_half_precision_model_that_casts_its_latents_itself_is_told_what_to_cast_to():
    net = nn.Linear(2, 5).bfloat16()
    with pytest.raises(DecoderError, match=r"called as a float32 copy, torch.bfloat16.*z.to\(weight.dtype\)"):
        Decoder(net, latent_dim=2, method=lambda model, z: model(z.to(torch.bfloat16)))
