"""The Decoder: which part is called, what it promises of its inputs and outputs, and what its refusals say."""

from __future__ import annotations

import copy
import dataclasses
import functools
import multiprocessing
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from torch import distributions, nn

from posthoc_metric._arrays import as_tensor
from posthoc_metric.decoder import Decoder
from posthoc_metric.decoder.conditions import advice
from posthoc_metric.decoder.settle import _batches
from posthoc_metric.errors import BatchWarning, DecoderError, DerivativeWarning, FitError, InvalidArgumentError
from posthoc_metric.repair import repair


def net(dim=2, out=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(dim, 8), nn.Tanh(), nn.Linear(8, out))


def latents(rows=5, dim=2, dtype=torch.float64):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1), dtype=dtype)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 2)
        self.decoder = net()

    def forward(self, x):
        return self.decoder(self.encoder(x))


class WithDecode(Autoencoder):
    def decode(self, z):
        return torch.sigmoid(self.decoder(z))


class SameDecode(Autoencoder):
    def decode(self, z):
        return self.decoder(z).view(-1, 2, 3)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoders = nn.ModuleList([net(), net(out=3)])


@dataclasses.dataclass
class Result:
    sample: torch.Tensor


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net = net()
        self.wrap = wrap

    def forward(self, z):
        return self.wrap(self.net(z))


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(10, 3)
            self.net = nn.Linear(5, 4)

    def forward(self, z, label, *, shift=0.0):
        extra = self.embed(label) if label.dtype == torch.long else label
        return torch.tanh(self.net(torch.cat([z, extra], dim=1))) + shift


class Queried(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net(dim=4, out=1)

    def forward(self, z, points):
        pairs = torch.cat([z[:, None].expand(-1, points.shape[1], -1), points], dim=-1)
        return self.net(pairs).squeeze(-1)


# ---- which part -------------------------------------------------------------------------------------------------


def test_the_decoder_of_an_autoencoder_is_found():
    model = Autoencoder()
    decoder = Decoder(model)
    assert "Autoencoder.decoder" in decoder.describe()
    assert decoder.latent_dim == 2 and decoder.output_dim == 6
    assert torch.allclose(decoder(latents()).float(), model.decoder(latents().float()))


def test_a_decode_that_agrees_with_the_decoder_is_taken():
    decoder = Decoder(SameDecode())
    assert "SameDecode.decode" in decoder.describe()
    assert decoder.output_shape == (2, 3)


def test_a_decode_that_differs_from_the_decoder_is_asked_about():
    with pytest.raises(DecoderError, match="method='decode' or method='decoder'"):
        Decoder(WithDecode())
    assert float(Decoder(WithDecode(), method="decode")(latents()).min()) > 0
    assert Decoder(WithDecode(), method="decoder").latent_dim == 2


@pytest.mark.parametrize("method", ["decoders.1", lambda model, z: model.decoders[1](z)])
def test_one_of_a_list(method):
    assert Decoder(Several(), method=method, latent_dim=2).output_dim == 3


@pytest.mark.parametrize(("method", "words"), [("nothing", "has no 'nothing'"), ("decoders", "index"), (3, "name")])
def test_a_method_that_is_not_there(method, words):
    with pytest.raises(InvalidArgumentError, match=words):
        Decoder(Several(), method=method, latent_dim=2)


def test_bound_methods_partials_and_functions_bring_their_modules():
    model = WithDecode().train()
    expected = torch.sigmoid(model.decoder(latents().float()))
    for function in (model.decode, functools.partial(WithDecode.decode, model), lambda z: model.decode(z)):
        decoder = Decoder(function, latent_dim=2)
        assert decoder.dtype == torch.float32
        assert torch.allclose(decoder(latents()).float(), expected)


@pytest.mark.parametrize("model", [3, "model.pt", None, nn.Module()])
def test_what_cannot_be_called(model):
    with pytest.raises(InvalidArgumentError, match="`model`"):
        Decoder(model, latent_dim=2)


def test_a_decoder_is_not_wrapped_twice():
    with pytest.raises(InvalidArgumentError, match="already"):
        Decoder(Decoder(net()))


def test_unknown_options_are_rejected():
    with pytest.raises(TypeError, match="latentdim"):
        Decoder(net(), latentdim=2)


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.DerivativeWarning")
def test_an_estimator_predicts():
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(0)
    model = LinearRegression().fit(rng.normal(size=(20, 3)), rng.normal(size=(20, 4)))
    decoder = Decoder(model)
    assert decoder.latent_dim == 3
    z = rng.normal(size=(5, 3))
    assert np.allclose(decoder(z), model.predict(z))
    assert np.abs(decoder.jacobian(z) - model.coef_).max() < 1e-8


# ---- latent dimension and shape ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["z_dim", "z_size", "code_dim", "encoding_dims", "d_latent"])
def test_the_width_is_read_off_attributes_and_layers(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, name, 3)
            self.net = net(dim=5)

        def forward(self, z):
            return self.net(torch.cat([z, z[:, :2]], dim=1))

    assert Decoder(Named()).latent_dim == 3
    assert Decoder(net(dim=7)).latent_dim == 7


def test_a_width_that_cannot_be_read_is_asked_for():
    with pytest.raises(InvalidArgumentError, match="latent_dim="):
        Decoder(torch.sin)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "2"])
def test_a_bad_width(bad):
    with pytest.raises(InvalidArgumentError, match="latent_dim"):
        Decoder(net(), latent_dim=bad)


def test_a_wrong_width_says_what_the_model_says():
    with pytest.raises(DecoderError, match=r"tried: 3.*mat1 and mat2.*latent_dim="):
        Decoder(net(), latent_dim=3)


def test_generators_that_want_images_of_one_pixel():
    generator = nn.Sequential(nn.ConvTranspose2d(4, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1))
    for decoder in (Decoder(generator), Decoder(generator, latent_dim=4), Decoder(generator, latent_shape=(4, 1, 1))):
        assert decoder.latent_dim == 4 and decoder.output_shape == (3, 8, 8)
    assert "(B, 4, 1, 1)" in Decoder(generator).describe()


class Plain(nn.Module):
    """The autoencoder that PyTorch's own examples have: one class, and layers by number."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = (
            nn.Linear(30, 12),
            nn.Linear(12, 3),
            nn.Linear(3, 12),
            nn.Linear(12, 30),
        )

    def encode(self, x):
        return self.fc2(self.fc1(x).relu())

    def decode(self, z):
        return self.fc4(self.fc3(z).relu()).sigmoid()


class Widened(Plain):
    """With a layer between the latents and what is called the decoder."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.ConvTranspose1d(4, 2, 4, 2, 1), nn.Tanh(), nn.Flatten())

    def decode(self, z):
        return self.decoder(self.fc3(z).view(-1, 4, 3))


@pytest.mark.parametrize("model", [Plain, Widened])
def test_the_width_of_decode_is_that_of_the_layer_on_which_it_runs(model):
    decoder = Decoder(model())
    assert decoder.latent_dim == 3
    assert f"calls {model.__name__}.decode" in decoder.describe()


class Around(nn.Module):
    """As those are written who want a module that decodes when it is called."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, z):
        return 2 * self.model.decode(z)


@pytest.mark.parametrize("model", [Plain, Widened])
def test_the_width_of_what_wraps_a_whole_autoencoder_is_that_of_its_decoder(model):
    model = model()
    for around in (Around(model), lambda z: 2 * model.decode(z)):
        decoder = Decoder(around)
        assert decoder.latent_dim == 3 and decoder.latent_dim_source == "first linear layer that takes as many"
    with pytest.raises(DecoderError, match=r"tried: 30 \(.*\), 12 \(.*\), 3 \("):
        Decoder(lambda z: model.decode(z[:, :2]))


class VolumeAutoencoder(nn.Module):
    """As MONAI's VarAutoEncoder: `decode` takes feature maps, and `decode_forward` the latents."""

    def __init__(self, latent_size=2, channels=8):
        super().__init__()
        self.latent_size = latent_size
        self.encode = nn.Conv2d(1, channels, 3, 2, 1)
        self.decode = nn.Sequential(nn.ConvTranspose2d(channels, 1, 3, 2, 1, 1), nn.PReLU())
        self.decodeL = nn.Linear(latent_size, channels * 16)

    def decode_forward(self, z):
        return self.decode(self.decodeL(z).view(len(z), -1, 4, 4))


@pytest.mark.parametrize("options", [{}, {"latent_dim": 8}])
@pytest.mark.parametrize("latent_size", [2, 8])
def test_feature_maps_are_not_taken_for_latents(options, latent_size):
    model = VolumeAutoencoder(latent_size)
    with pytest.raises(InvalidArgumentError, match=r"latent_shape=\(8, 1, 1\); else .*has decodeL, decode_forward"):
        Decoder(model, **options)
    assert Decoder(model, latent_shape=(8, 1, 1)).latent_dim == 8
    assert Decoder(model, method="decode_forward").latent_dim == latent_size
    with pytest.raises(DecoderError, match="tried: 3.*Beside it the model has decodeL, decode_forward"):
        Decoder(model, latent_dim=3)


def test_a_layer_that_contradicts_the_models_own_words_is_asked_about():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.z_dim = 2
            self.net = net(dim=5)

        def forward(self, z, label=None):
            return self.net(z if label is None else torch.cat([z, label], 1))

    with pytest.raises(InvalidArgumentError, match=r"5 numbers.*`z_dim` says 2, on which it fails.*latent_dim=5"):
        Decoder(Optional())
    assert Decoder(Optional(), latent_dim=5).latent_dim == 5
    assert Decoder(Optional(), condition=[0.1, 0.2, 0.3]).latent_dim == 2


def test_a_layer_that_does_not_tell_the_width_is_asked_about():
    class Overlapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.content, self.style = net(dim=4), net(dim=4)

        def forward(self, z):
            return self.content(z[:, :4]) * self.style(z[:, -4:])

    with pytest.raises(InvalidArgumentError, match=r"4 numbers.*runs on 5 as well.*latent_dim=4"):
        Decoder(Overlapping())
    assert Decoder(Overlapping(), latent_dim=8).latent_dim == 8


def test_a_whole_autoencoder_is_not_taken_for_a_decoder():
    class Short(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = net(dim=6, out=2), net(dim=2, out=6)

        def forward(self, x):
            return self.dec(self.enc(x))

    with pytest.raises(InvalidArgumentError, match="as a whole autoencoder does with data.*latent_dim=6.*has dec"):
        Decoder(Short())
    assert Decoder(Short(), method="dec").latent_dim == 2
    assert Decoder(net(dim=6, out=6)).latent_dim == 6


def test_latents_that_contradict_an_inferred_width_say_where_it_came_from():
    decoder = Decoder(net(dim=7))
    words = r"must have 7 columns.*inferred from its first linear layer.*latent_dim=2"
    for call in (decoder, decoder.jacobian, decoder.acquainted, lambda z: repair(decoder, z)):
        with pytest.raises(InvalidArgumentError, match=words):
            call(latents(300))
    with pytest.raises(InvalidArgumentError) as caught:
        Decoder(net(dim=7), latent_dim=7)(latents())
    assert "inferred" not in str(caught.value)


def test_latents_with_axes():
    decoder = Decoder(nn.Conv2d(2, 3, 3, padding=1), latent_shape=(2, 4, 4))
    assert decoder.latent_dim == 32
    assert decoder.jacobian(latents(3, 32)).shape == (3, 48, 32)
    with pytest.raises(InvalidArgumentError, match="32 numbers"):
        Decoder(nn.Conv2d(2, 3, 3, padding=1), latent_shape=(2, 4, 4), latent_dim=31)
    with pytest.raises(InvalidArgumentError, match="latent_shape"):
        Decoder(nn.Conv2d(2, 3, 3, padding=1), latent_shape=(2, 0))


# ---- outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda x: (x,), None),
        (lambda x: [x, "text"], None),
        (lambda x: {"reconstruction": x, "loss": x.mean()}, None),
        (lambda x: Result(x), None),
        (lambda x: torch.distributions.Normal(x, 1.0), None),
        (lambda x: torch.distributions.Independent(torch.distributions.Normal(x, 1.0), 1), None),
        (lambda x: {"px": torch.distributions.Normal(x, 1.0), "pl": None}, None),
        (lambda x: (2 * x, x), 1),
        (lambda x: (x, 2 * x), -2),
        (lambda x: {"a": x, "b": 2 * x}, "a"),
        (lambda x: {"a": torch.distributions.Normal(x, 1.0), "b": x}, "a"),
        (lambda x: Result(x), "sample"),
        (lambda x: torch.distributions.Normal(x, 1.0), "loc"),
        (lambda x: (x, 2 * x), lambda result: result[1] / 2),
    ],
)
def test_outputs_are_picked(wrap, output):
    decoder = Decoder(Returning(wrap), output=output)
    assert torch.allclose(decoder(latents()).float(), net()(latents().float()))
    assert decoder.jacobian(latents()).shape == (5, 6, 2)


def test_one_number_a_row_without_an_axis_of_its_own():
    decoder = Decoder(lambda z: z.sin().sum(1), latent_dim=2)
    assert decoder.output_dim == 1 and decoder.output_shape == ()
    assert torch.allclose(decoder.jacobian(latents())[:, 0], latents().cos())
    # a single row is not taken for that number
    assert decoder(latents()[:1]).shape == (1, 1)


class ForeignArray:
    """What another library's arrays look like: NumPy can read them, and may not write to them."""

    __slots__ = ("_values", "shape")

    def __init__(self, values):
        self._values = values
        self._values.flags.writeable = False
        self.shape = values.shape

    def __array__(self, dtype=None, copy=None):
        return self._values if dtype is None else self._values.astype(dtype)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"x": x, "loss": ForeignArray(np.array(3.0))}])
def test_arrays_of_other_libraries_are_read(wrap):
    def model(z):
        return wrap(ForeignArray(2.0 * np.asarray(z)))

    with pytest.warns(DerivativeWarning, match="finite differences"):
        decoder = Decoder(model, latent_dim=2)
    assert torch.equal(decoder(latents()), 2.0 * latents())


def test_an_array_of_another_library_is_not_written_to_through_what_is_returned():
    constant = np.ones((4, 3))
    constant.flags.writeable = False
    tensor = as_tensor(constant)
    tensor += 1.0
    assert float(constant.sum()) == 12.0


def test_several_arrays_of_another_library_are_named_with_their_shapes():
    def model(z):
        return ForeignArray(np.asarray(z)), ForeignArray(2.0 * np.asarray(z))

    with pytest.raises(DecoderError, match=r"0: ForeignArray of shape \(4, 2\).*output="):
        Decoder(model, latent_dim=2)


def test_several_outputs_are_asked_about():
    with pytest.raises(DecoderError, match=r"tuple of \{0: Tensor of shape \(4, 6\), 1: .*output="):
        Decoder(Returning(lambda x: (x, 2 * x)))


def test_an_argument_that_a_model_cannot_be_called_without_is_named():
    class Generator(Returning):
        def forward(self, z, c, truncation_psi=1):
            return super().forward(z)

    model = Generator(lambda x: x)
    with pytest.raises(DecoderError, match=r"condition= what it needs beside z, as \{'c': \.{3}\} \(None for"):
        Decoder(model)
    assert Decoder(model, condition={"c": None}).output_dim == 6


@pytest.mark.parametrize("output", [2, "x"])
def test_an_output_that_is_not_there(output):
    with pytest.raises(DecoderError, match="`output` is"):
        Decoder(Returning(lambda x: (x, x)), output=output)


@pytest.mark.parametrize(
    ("output", "words"), [("x", "`output` is 'x', which"), (lambda r: r["x"], "`output` is a function of the result,")]
)
def test_a_part_that_is_none_is_not_taken_for_what_the_decoder_returns(output, words):
    with pytest.raises(DecoderError, match=words + r".*; it leads to None. The decoder returns dict of \{'x': None"):
        Decoder(Returning(lambda x: {"x": None, "y": x}), output=output)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (
            lambda x: distributions.Categorical(logits=x.view(-1, 2, 3)),
            "Categorical.*output='probs' or output='logits'",
        ),
        (lambda x: distributions.Cauchy(x, 1.0), "Cauchy.*output='loc'"),
        (lambda x: (distributions.Cauchy(x, 1.0),), "Cauchy.*`output` a function"),
        (
            lambda x: distributions.Independent(distributions.Categorical(logits=x.view(-1, 2, 3)), 1),
            "Independent.*`output` a function",
        ),
    ],
)
def test_a_distribution_without_a_mean_says_what_to_take(wrap, words):
    with pytest.raises(DecoderError, match=f"mean of its {words}"):
        Decoder(Returning(wrap), latent_dim=2)


@pytest.mark.parametrize(
    "convert", [lambda net, z: net.to(z.device), lambda net, z: net.to(z.dtype), lambda net, z: net.cpu()]
)
def test_a_call_that_moves_its_own_module_is_refused_before_torch_crashes(convert):
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(DecoderError, match=r"leave its modules as they are.*module\(z.to"):
        Decoder(lambda z: convert(net, z)(z), latent_dim=2)
    net.to(torch.float64)
    Decoder(lambda z: net(z.to(net[0].weight.dtype)), latent_dim=2)


@pytest.mark.parametrize("name", ["mean", "last"])
@pytest.mark.parametrize("new", [lambda held, y: held + 1, lambda held, y: y.data.mean(0)])
def test_a_call_that_sets_data_of_its_buffers_is_refused_before_torch_crashes(name, new):
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(out=3)
            self.register_buffer("mean", torch.zeros(3))
            self.last = torch.zeros(3)

        def forward(self, z):
            y = self.net(z)
            held = getattr(self, name)
            held.data = new(held.data, y)
            return y

    with pytest.raises(DecoderError, match=r"leave its modules as they are.*in eval mode"):
        Decoder(Averaging(), latent_dim=2)


def test_what_is_advised_for_a_distribution_without_a_mean_works():
    model = Returning(lambda x: distributions.Categorical(logits=x.view(-1, 2, 3)))
    assert Decoder(model, latent_dim=2, output="probs").output_shape == (2, 3)


def test_weights_that_are_nan_are_not_taken_for_a_distribution_without_a_mean():
    model = Returning(lambda x: distributions.Categorical(logits=x * float("nan"), validate_args=False))
    with pytest.raises(DecoderError, match="Check its weights"):
        Decoder(model, latent_dim=2)


# ---- conditions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "condition",
    [
        3,
        torch.tensor(3),
        torch.tensor([3]),
        np.array([3]),
        {"label": 3},
        (3,),
        lambda z: torch.full((len(z),), 3),
        {"label": torch.tensor(3), "shift": 0.0},
    ],
)
def test_labels_are_repeated_for_the_batch(condition):
    model = Conditional()
    decoder = Decoder(model, latent_dim=2, condition=condition)
    expected = model(latents().float(), torch.full((5,), 3))
    assert torch.allclose(decoder(latents()).float(), expected)
    assert decoder.jacobian(latents()).shape == (5, 4, 2)


@pytest.mark.parametrize("condition", [torch.tensor([0.1, 0.2, 0.3]), np.array([[0.1, 0.2, 0.3]]), [0.1, 0.2, 0.3]])
def test_vectors_beside_z(condition):
    model = Conditional()
    decoder = Decoder(model, latent_dim=2, condition=condition)
    expected = model(latents().float(), torch.tensor([[0.1, 0.2, 0.3]]).expand(5, -1))
    assert torch.allclose(decoder(latents()).float(), expected)


class Counts(nn.Module):
    """Rates of counts, as models of single cells have them: a batch label and a library size beside z."""

    def __init__(self, batches=3):
        super().__init__()
        self.batches = batches
        self.net = net(2 + batches, 6)

    def forward(self, z, library, batch):
        return library.exp() * self.net(torch.cat([z, self.one_hot(batch)], dim=-1)).softmax(-1)

    def one_hot(self, batch):
        if batch.size(1) != self.batches:
            batch = nn.functional.one_hot(batch.squeeze(-1).long(), self.batches)
        return batch.float()


class LabelledCounts(Counts):
    """The same, whose labels are one axis."""

    def one_hot(self, batch):
        return nn.functional.one_hot(batch, self.batches).float()


@pytest.mark.parametrize("kind", [Counts, LabelledCounts])
@pytest.mark.parametrize("library", [torch.tensor([2.0]), torch.tensor(2.0), np.array([2.0]), [[2.0]], 2])
@pytest.mark.parametrize("label", [1, torch.tensor([1]), np.int64(1)])
@pytest.mark.parametrize("shape", [dict, tuple])
def test_single_numbers_are_columns_where_a_model_takes_no_others(kind, library, label, shape):
    model = kind()
    condition = {"library": library, "batch": label} if shape is dict else (library, label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = Decoder(model, latent_dim=2, condition=condition)
    label = torch.ones(5, 1) if kind is Counts else torch.ones(5, dtype=torch.long)
    expected = model(latents().float(), torch.full((5, 1), 2.0), label)
    assert torch.allclose(decoder(latents()).float(), expected)
    assert "(B, 1)" in decoder.describe() or (library == [[2.0]] and kind is LabelledCounts)
    assert "batches of" not in decoder.describe()


class Property(nn.Module):
    """A number of its own for each row, as models of molecules take a property."""

    def __init__(self):
        super().__init__()
        self.net = net(3)

    def forward(self, z, value):
        return self.net(torch.cat([z, value], 1))


@pytest.mark.parametrize("condition", [[0.5], np.array([0.5]), torch.tensor(0.5), (torch.tensor([0.5]),)])
def test_a_number_that_is_no_integer_is_a_column_too(condition):
    model = Property()
    decoder = Decoder(model, latent_dim=2, condition=condition)
    assert torch.allclose(decoder(latents()).float(), model(latents().float(), torch.full((5, 1), 0.5)))


@pytest.mark.parametrize("factor", [2, torch.tensor([2.0]), [2.0]])
def test_a_number_that_multiplies_a_single_output_is_a_column(factor):
    decoder = Decoder(lambda z, k: k * z.sin().sum(1, keepdim=True), latent_dim=2, condition=factor)
    assert torch.allclose(decoder(latents()), 2 * latents().sin().sum(1, keepdim=True))


class Drawing(nn.Module):
    """Draws the noise that it is not given."""

    def __init__(self):
        super().__init__()
        self.net = net(2)

    def forward(self, z, noise=None):
        x = self.net(z)
        return x + (torch.randn_like(x) if noise is None else noise)


def test_noise_that_a_model_draws_for_itself_is_a_condition():
    model = Drawing()
    with pytest.raises(DecoderError, match=r"draws for itself, such as noise or a label \(condition=\)"):
        Decoder(model)
    assert torch.equal(Decoder(model, condition=0.0)(latents().float()), model(latents().float(), 0.0).detach())


def test_a_model_that_takes_a_dictionary_is_called_by_a_function():
    class Batch(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(2)

        def forward(self, batch):
            return {**batch, "output": self.net(batch["z"])}

    model = Batch()
    with pytest.raises(DecoderError, match=r"which part decodes \(its name, or a function of the model and z\)"):
        Decoder(model)
    decoder = Decoder(model, method=lambda model, z: model({"z": z})["output"])
    assert torch.equal(decoder(latents().float()), model.net(latents().float()).detach())


class Growing(nn.Module):
    """A label beside z, and how many of its layers to use, as generators have it that grow while they are trained."""

    def __init__(self):
        super().__init__()
        self.embed, self.first = nn.Embedding(4, 3), nn.Linear(5, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, z, label, step=0, alpha=-1):
        x = self.first(torch.cat([z, self.embed(label)], 1)).tanh()
        before = x
        for i, layer in enumerate(self.layers):
            before, x = x, layer(x).tanh()
            if i == step:
                break
        return (1 - alpha) * before + alpha * x if 0 <= alpha < 1 else x


@pytest.mark.parametrize("condition", [{"label": 3, "step": 1, "alpha": 0.3}, (3, np.int64(1), 0.3)])
def test_whole_numbers_that_are_no_labels_are_options(condition):
    model = Growing()
    decoder = Decoder(model, latent_dim=2, condition=condition)
    expected = model(latents().float(), torch.full((5,), 3), 1, 0.3)
    assert torch.allclose(decoder(latents()).float(), expected)
    assert "handed over as it is" in decoder.describe()
    assert torch.equal(pickle.loads(pickle.dumps(decoder))(latents()), decoder(latents()))


def test_how_many_entries_to_cut_is_an_option():
    def truncated(z, keep):
        return torch.cat([z[:, :keep].sin(), 0.5 * z[:, keep:]], 1)

    decoder = Decoder(truncated, latent_dim=3, condition=2)
    assert torch.allclose(decoder(torch.ones(1, 3))[0, 1:], torch.tensor([0.8414710, 0.5]))


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (0.5, "[0.5]"),
        ({"value": 0.5}, "[0.5]"),
        (torch.zeros(300), "One condition serves all rows: an array of shape (300,) is handed over as (B, 300)"),
        ((np.zeros((300, 2)),), "One condition serves all rows"),
        ([1, 2], "shape (2,)"),
        ([0, 0, 1], "pass as floats"),
        ({"label": np.array([[0, 0, 1]])}, "pass as floats"),
    ],
)
def test_what_a_condition_may_have_been_meant_for_is_said(condition, words):
    assert words in advice(condition)


@pytest.mark.parametrize("condition", [None, 2, torch.tensor([0.5]), np.zeros((1, 300)), ["text", "y"], object()])
def test_of_other_conditions_there_is_nothing_to_say(condition):
    assert advice(condition) == ""


@pytest.mark.parametrize(
    "condition", [["text"], [[1, 2], [3]], [object()], [None], {"library": "x", "batch": [1, "y"]}]
)
def test_a_condition_that_is_no_array_is_refused_with_the_words_of_the_error(condition):
    with pytest.raises(DecoderError, match="condition="):
        Decoder(Counts(), latent_dim=2, condition=condition)


def test_a_model_that_takes_one_latent_at_a_time_is_slow_and_says_so():
    inner = net()

    def one(z):
        if len(z) != 1:
            raise ValueError(f"got {len(z)} latents, expected 1")
        return inner(z)

    with pytest.warns(
        BatchWarning, match="one latent at a time; called on 4 it says: ValueError.*expected 1.*condition="
    ):
        decoder = Decoder(one, latent_dim=2)
    assert torch.allclose(decoder(latents()).float(), inner(latents().float()))


class Scales(nn.Module):
    """Multiplies what it decodes, or a layer inside, by numbers of its own."""

    def __init__(self, inside=False):
        super().__init__()
        self.net, self.head, self.inside = net(out=5), net(dim=5, out=7), inside

    def forward(self, z, library, label=None):
        return self.head(self.net(z) * library) if self.inside else self.net(z) * library


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor, lambda v: {"library": v}, lambda v: (v, 0)])
def test_one_value_a_row_is_not_spread_over_the_outputs(inside, kind):
    model, values = Scales(inside), [1.0, 2.0, 3.0, 4.0, 5.0]
    words = (
        r"`condition`.* must be what belongs to one row; got shape \(5,\).*pass it with a first axis of one, \(1, 5\)"
    )
    with pytest.raises(InvalidArgumentError, match=words):
        Decoder(model, latent_dim=2, condition=kind(values))
    decoder = Decoder(model, latent_dim=2, condition=np.array([values]))
    assert torch.allclose(decoder(latents()).float(), model(latents().float(), torch.tensor([values])))
    assert Decoder(model, latent_dim=2, condition=[2.0]).output_dim == (7 if inside else 5)


def test_a_row_of_numbers_that_a_model_takes_as_such_is_no_matter():
    # one-hot rows where labels are taken too
    decoder = Decoder(Counts(), latent_dim=2, condition={"library": [2.0], "batch": [0.0, 0.0, 1.0]})
    label = torch.tensor([[0.0, 0.0, 1.0]]).expand(5, -1)
    assert torch.allclose(decoder(latents()).float(), Counts()(latents().float(), torch.full((5, 1), 2.0), label))


def test_numbers_that_run_on_so_many_rows_by_chance_are_columns():
    model = Scales()
    model.net = net(out=4)  # as many outputs as rows are tried
    decoder = Decoder(model, latent_dim=2, condition=[2.0])
    assert "(B, 1)" in decoder.describe() and "batches of" not in decoder.describe()
    assert torch.allclose(decoder(latents()).float(), 2.0 * model.net(latents().float()))


def test_labels_whose_axis_a_squeeze_takes_from_a_single_row():
    class Squeezed(Counts):
        def one_hot(self, batch):
            return nn.functional.one_hot(batch.squeeze(-1), self.batches).float()

    decoder = Decoder(Squeezed(), latent_dim=2, condition={"library": [2.0], "batch": 1})
    assert "batch handed over as (B, 1)" in decoder.describe()
    assert torch.allclose(decoder(latents()[:1]), decoder(latents())[:1], atol=1e-5)


def test_a_row_that_fails_alone_is_not_left_alone():
    inner = net()

    def squeezed(z):
        return torch.cat([inner(z).squeeze(), z], 1)

    decoder = Decoder(squeezed, latent_dim=2)
    assert "handed over twice" in decoder.describe() and "batches of" not in decoder.describe()
    assert torch.allclose(decoder.jacobian(latents()[:1]), decoder.jacobian(latents())[:1], atol=1e-5)


def test_outputs_whose_number_grows_with_the_rows_are_refused():
    class Image(Scales):
        def forward(self, z, library):
            return super().forward(z, library=1.0).view(-1, 1, 5, 1) * library

    with pytest.raises(DecoderError, match=r"4 latents gave 20 outputs each and 5 gave 25.*One condition serves all"):
        Decoder(Image(), latent_dim=2, condition=np.ones((5, 1)))


def test_a_function_of_one_latent_without_a_batch_is_told_how_to_take_one():
    inner = net()

    def one(z):
        assert z.ndim == 1
        return inner(z).view(2, 3)

    with pytest.raises(DecoderError, match=r"runs on one latent of shape \(2,\): wrap torch.vmap of it"):
        Decoder(one, latent_dim=2)
    decoder = Decoder(torch.vmap(one), latent_dim=2)
    assert torch.allclose(decoder(latents()).float(), inner(latents().float()))


def test_of_a_model_that_differentiates_inside_no_graph_is_kept():
    """Steps down an energy, as models of molecules and of forces take."""
    potential = net(dim=3, out=1)

    def relaxed(z):
        with torch.enable_grad():
            x = torch.zeros_like(z[:, :1]).requires_grad_()
            (slope,) = torch.autograd.grad(potential(torch.cat([x, z], 1)).sum(), x, create_graph=True)
        return x - slope

    decoder = Decoder(relaxed, latent_dim=2)
    z = latents()
    pushed, pulled = decoder.jvp(z, torch.ones_like(z)), decoder.vjp(z, torch.ones(5, 1))
    results = decoder(z), *pushed, *pulled, *decoder.value_and_jacobian(z)
    assert not any(result.requires_grad for result in results)
    step = torch.tensor([1e-6, 1e-6], dtype=z.dtype)
    precise = decoder.in_float64()
    assert torch.allclose(pushed[1], (precise(z + step) - precise(z - step)) / 2e-6, atol=1e-5)


def test_query_points():
    points = torch.linspace(0, 1, 14).view(7, 2)
    decoder = Decoder(Queried(), latent_dim=2, condition=points)
    assert decoder.output_dim == 7


def test_a_missing_condition_names_the_remedy():
    with pytest.raises(DecoderError, match="label.*condition="):
        Decoder(Conditional(), latent_dim=2)


# ---- the promises -----------------------------------------------------------------------------------------------


def test_where_latents_are_not_the_first_argument_it_is_said_what_the_model_takes():
    class LabelFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, kind: str, z: torch.Tensor, library, *labels):
            return self.net(z) * {"gene": library}[kind]

    words = r"It takes \(kind, z, library, \*labels\), of which latents are the first; .* pass method="
    with pytest.raises(DecoderError, match=words):
        Decoder(LabelFirst(), latent_dim=2, condition=("gene", torch.tensor([2.0])))
    decoder = Decoder(LabelFirst(), latent_dim=2, method=lambda m, z: m("gene", z, 2.0))
    assert torch.allclose(decoder(latents()).float(), 2.0 * net()(latents().float()))
    with pytest.raises(DecoderError) as caught:
        Decoder(net(), latent_dim=3)
    assert "It takes" not in str(caught.value)
    defaults = torch.eye(30)
    with pytest.raises(DecoderError, match=r"It takes \(z, label, basis=\.\.\., scale=1\.0\), of which"):
        Decoder(lambda z, label, basis=defaults, scale=1.0: z, latent_dim=2)


def test_the_callers_mode_flags_and_tensors_stay():
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6)).train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    z = latents().requires_grad_(True)
    before = z.detach().clone()
    decoder = Decoder(model)
    first = decoder(z)
    assert torch.equal(decoder(z), first)  # dropout is off
    decoder.jvp(z, z), decoder.vjp(z, first), decoder.jacobian(z)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(z, before) and z.requires_grad and z.grad is None
    assert not first.requires_grad


def test_the_mode_is_restored_after_an_error():
    model = Returning(lambda x: x).train()
    decoder = Decoder(model)
    model.wrap = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        decoder(latents())
    assert all(module.training for module in model.modules())


def test_threads_share_a_model_in_train_mode():
    model = nn.Sequential(nn.Linear(2, 64), nn.Dropout(0.5), nn.Linear(64, 6)).train()
    decoder = Decoder(model)
    z = latents(200)
    expected, wrong = decoder(z), []

    def work():
        for _ in range(30):
            if not torch.equal(decoder(z), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(module.training for module in model.modules())


def test_vmap_that_goes_row_by_row_is_not_taken():
    """torch's rule for the gated unit's forward derivative lacks a batched form; it would warn at each call."""
    gated = nn.Sequential(nn.Linear(2, 16), nn.GLU(), nn.Linear(8, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder, smooth = Decoder(gated, latent_dim=2), Decoder(net())
        decoder.jacobian(latents())
    assert "repeated" in decoder.describe()
    assert "vmap" in smooth.describe()


def test_threads_differentiate_at_once():
    decoder = Decoder(net())
    z, v, u = latents(200), latents(200).flip(0), torch.ones(200, 6, dtype=torch.float64)

    def derivatives(_):
        return decoder.value_and_jacobian(z)[1], decoder.jvp(z, v)[1], decoder.vjp(z, u)[1]

    expected = derivatives(None)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(derivatives, range(80)))
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_may_fork_while_a_thread_differentiates():
    """As a training script does whose loader has workers; a lock that was held then would never be given back."""
    decoder, z, done = Decoder(net()), latents(200), threading.Event()

    def work():
        while not done.is_set():
            decoder.jacobian(z)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            child = multiprocessing.get_context("fork").Process(target=decoder.jacobian, args=(z,))
            child.start()
            child.join(30)
            alive = child.is_alive()
            child.kill()
            assert not alive and child.exitcode == 0
    finally:
        done.set()
        thread.join()


class _Slow(int):
    """A number of rows that takes its time to be added, so that the counters' lock is held meanwhile."""

    adding = threading.Event()

    def __radd__(self, other):
        self.adding.set()
        time.sleep(0.3)
        return int(self) + other


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_may_fork_while_a_thread_counts():
    counters = Decoder(net())._engine.counters
    with counters.counting() as work:
        thread = threading.Thread(target=counters.add, kwargs={"values": _Slow(5)})
        thread.start()
        assert _Slow.adding.wait(30)
        child = multiprocessing.get_context("fork").Process(target=counters.add, kwargs={"values": 1})
        child.start()
        child.join(30)
        alive = child.is_alive()
        child.kill()
        thread.join()
    assert not alive and child.exitcode == 0 and work.values == 5


def test_inference_mode_is_left_for_derivatives():
    decoder, z, u = Decoder(net()), latents(), torch.ones(5, 6, dtype=torch.float64)
    expected = decoder.vjp(z, u)
    with torch.inference_mode():
        found = decoder.vjp(z + 0, u)
        _, pull = decoder.value_and_pull(z + 0)
        assert torch.equal(pull(u + 0), expected[1])
    assert all(map(torch.equal, found, expected))


def test_torchs_generator_is_not_disturbed():
    state = torch.random.get_rng_state()
    Decoder(net())
    with pytest.raises(DecoderError):
        Decoder(Returning(lambda x: x + torch.randn_like(x)))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("output", [lambda y: y.double(), lambda y: 0.3 * y.double()])
def test_a_single_model_whose_output_is_cast_to_double_is_a_single_model(output):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 9))
    decoder, z, u = Decoder(model, output=output), latents(40, 3), torch.ones(40, 9, dtype=torch.float64)
    exact = Decoder(copy.deepcopy(model).double(), output=output)
    for found, expected in ((decoder(z), exact(z)), (decoder.vjp(z, u)[1], exact.vjp(z, u)[1])):
        assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(decoder(z), decoder(z).float().double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_what_comes_in_decides_what_goes_out(dtype, own):
    decoder = Decoder(net().to(own))
    z = latents().to(dtype)
    outs = [decoder(z), *decoder.jvp(z, z), *decoder.vjp(z, decoder(z)), *decoder.value_and_jacobian(z)]
    assert {out.dtype for out in outs} == {dtype}
    array = z.numpy()
    outs = [decoder(array), *decoder.jvp(array, array), decoder.jacobian(array)]
    assert all(isinstance(out, np.ndarray) and out.dtype == array.dtype for out in outs)


def test_lists_and_integers():
    assert isinstance(Decoder(net())([[0.0, 1.0]]), np.ndarray)
    assert Decoder(net())(torch.tensor([[0, 1]])).dtype == torch.get_default_dtype()


def test_no_rows():
    decoder = Decoder(net())
    z = torch.empty(0, 2)
    assert decoder(z).shape == (0, 6) and decoder.jacobian(z).shape == (0, 6, 2)
    assert decoder.jvp(z, z)[1].shape == (0, 6) and decoder.vjp(z, torch.empty(0, 6))[1].shape == (0, 2)


@pytest.mark.parametrize("max_bytes", [1, 2_000, 20_000])
def test_chunks_change_nothing_but_memory(max_bytes):
    whole, chunked = Decoder(net(dim=9).double()), Decoder(net(dim=9).double(), max_bytes=max_bytes)
    z = latents(11, 9)
    for one, other in zip(whole.value_and_jacobian(z), chunked.value_and_jacobian(z), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    u = whole(z)
    assert torch.allclose(whole.vjp(z, u)[1], chunked.vjp(z, u)[1], atol=1e-12)
    assert torch.allclose(whole.jvp(z, z)[1], chunked.jvp(z, z)[1], atol=1e-12)
    assert torch.allclose(u, chunked(z), atol=1e-12)


def test_rows_do_not_depend_on_their_batch():
    decoder = Decoder(net().double())
    z = latents()
    assert torch.allclose(decoder.jacobian(z)[2:3], decoder.jacobian(z[2:3]), atol=1e-14)


def test_work_is_counted():
    decoder = Decoder(net(dim=3))
    z = latents(7, 3)
    with decoder.counting() as outer:
        decoder(z)
        with decoder.counting() as inner:
            decoder.jacobian(z)
        decoder.jvp(z, z)
        decoder.vjp(z, torch.ones(7, 6))
    decoder(z)
    assert (inner.values, inner.jvps, inner.vjps) == (7, 21, 0)
    assert (outer.values, outer.jvps, outer.vjps) == (14, 28, 7)


def test_pickles_and_copies():
    decoder = Decoder(net())
    z = latents()
    for twin in (pickle.loads(pickle.dumps(decoder)), copy.deepcopy(decoder)):
        assert torch.equal(twin(z), decoder(z)) and torch.equal(twin.jacobian(z), decoder.jacobian(z))
        with twin.counting() as work:
            twin(z)
        assert work.values == 5


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_joblib_workers(backend):
    decoder = Decoder(net())
    z = latents(4)
    parts = Parallel(n_jobs=2, backend=backend)(delayed(decoder)(row[None]) for row in z)
    assert torch.allclose(torch.cat(parts), decoder(z))


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "words"),
    [
        (torch.zeros(3, 5), "2 columns"),
        (torch.zeros(2), "batch axis"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "row 1 is NaN"),
        (np.array([[0.0, np.inf]]), "row 0 is NaN or infinite"),
        ("text", "must be a tensor"),
        (torch.zeros(3, 2, dtype=torch.complex64), "real"),
    ],
)
def test_bad_latents(z, words):
    decoder = Decoder(net())
    for call in (decoder, decoder.jacobian, lambda z: decoder.jvp(z, z)):
        with pytest.raises(InvalidArgumentError, match=words):
            call(z)


def test_vectors_that_do_not_go_with_the_latents():
    decoder = Decoder(net())
    z = torch.zeros(3, 2)
    with pytest.raises(InvalidArgumentError, match="`v`.*3 rows"):
        decoder.jvp(z, torch.zeros(2, 2))
    with pytest.raises(InvalidArgumentError, match="`u`.*6 columns"):
        decoder.vjp(z, torch.zeros(3, 2))


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_a_bad_budget(bad):
    with pytest.raises(InvalidArgumentError, match="max_bytes"):
        Decoder(net(), max_bytes=bad)


def test_nan_far_away_names_the_rows():
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, z):
            return torch.where(z.abs().amax(dim=1, keepdim=True) < 50, self.net(z), torch.nan)

    decoder = Decoder(Bounded())
    z = latents()
    z[[1, 4]] = 1e4
    for call in (decoder, decoder.jacobian, lambda z: decoder.jvp(z, z)):
        with pytest.raises(DecoderError, match="rows 1, 4 are NaN") as caught:
            call(z)
        assert caught.value.rows == (1, 4)
        assert pickle.loads(pickle.dumps(caught.value)).rows == (1, 4)


def test_latents_of_the_callers_at_which_it_is_not_finite_are_not_called_standard_normal():
    plain = net().double()

    def model(z):
        return plain(z) + torch.where(z[:, :1] > 50, float("nan"), 0.0)

    far = latents(30).double() + 60
    decoder = Decoder(model, latent_dim=2)
    for refused in (lambda: Decoder(model, latent_dim=2, probe=far), lambda: repair(decoder, far)):
        with pytest.raises(DecoderError, match="at 4 of 4 latents tried of those given") as caught:
            refused()
        assert "standard normal" not in str(caught.value) and caught.value.rows == ()


def test_a_decoder_whose_latents_live_elsewhere():
    model = Returning(lambda x: x)
    model.net = nn.Sequential(nn.Linear(2, 6))
    with torch.no_grad():
        model.net[0].weight.fill_(1.0)
        model.net[0].bias.zero_()
    model.wrap = lambda x: torch.log(x - 10)
    with pytest.raises(DecoderError, match="probe="):
        Decoder(model, latent_dim=2)
    there = 20 + latents(6)
    decoder = Decoder(model, latent_dim=2, probe=there)
    assert torch.allclose(decoder(there), torch.log(there.sum(dim=1, keepdim=True) - 10).expand(-1, 6), atol=1e-5)


class Scaled(nn.Module):
    """A decoder that sees its latents through ``(z - shift) / scale``."""

    def __init__(self, scale, shift, activation):
        super().__init__()
        self.scale, self.shift = scale, shift
        self.net = nn.Sequential(*net(), activation(), nn.Linear(6, 40), activation(), nn.Linear(40, 5))

    def forward(self, z):
        return self.net((z - self.shift) / self.scale)


def scaled(scale, shift, activation, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Scaled(scale, shift, activation).to(dtype)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-7, 1e-6, 1e-4, 1e-2, 1e3, 1e6, 1e7])
@pytest.mark.filterwarnings("error")
def test_latents_of_any_scale_are_differentiated_automatically(scale, dtype, activation):
    model, plain = scaled(scale, 0.0, activation, dtype), scaled(1.0, 0.0, activation, dtype)
    z = latents(8, dtype=dtype)
    expected = Decoder(plain).jacobian(z)
    for probe in (None, scale * z):
        decoder = Decoder(model, latent_dim=2, probe=probe)
        assert "forward-mode" in decoder.describe()
        assert torch.allclose(scale * decoder.jacobian(scale * z), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize(("scale", "shift"), [(1e-2, 1e2), (1.0, 1e4), (1e-6, 1e-2), (1e-6, 1e4), (1e6, 1e10)])
@pytest.mark.filterwarnings("error")
def test_latents_far_from_zero_are_probed_at_once_they_are_known(scale, shift, activation):
    decoder = Decoder(scaled(scale, shift, activation, torch.float64), latent_dim=2)
    z = latents(200)
    decoder = decoder.acquainted(shift + scale * z)
    assert "forward-mode" in decoder.describe()
    assert "unchecked" not in decoder.describe()
    expected = Decoder(scaled(1.0, 0.0, activation, torch.float64), latent_dim=2).jacobian(z)
    close = ((scale * decoder.jacobian(shift + scale * z) - expected).abs() <= 1e-3).double().mean()
    assert float(close) > 0.99  # a rounded latent may fall on the other side of a kink


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.DerivativeWarning")
def test_finite_differences_take_steps_of_the_latents_own_scale(scale):
    plain = scaled(1.0, 0.0, nn.Tanh, torch.float64)

    def opaque(z):
        return torch.from_numpy(plain(z / scale).detach().numpy().copy())

    z = latents(8)
    decoder = Decoder(opaque, latent_dim=2).acquainted(scale * z)
    assert "finite differences" in decoder.describe()
    expected = Decoder(plain).jacobian(z)
    assert torch.allclose(scale * decoder.jacobian(scale * z), expected, rtol=1e-6, atol=1e-8)


def test_one_far_latent_does_not_set_the_scale_of_all_others():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bends = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 30)]
    decoder = Decoder(nn.Sequential(*bends))
    rows = latents(3000)
    rows[0], rows[1500] = 1000.0, -3000.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = decoder.acquainted(rows)
    assert "by forward-mode AD" in decoder.describe()


def test_acquaintance_is_made_once():
    calls = []
    with torch.random.fork_rng():
        # not every one of these is smooth enough between latents of scale one to be probed there
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6))
    model.register_forward_hook(lambda *_: calls.append(1))
    decoder = Decoder(model)
    calls.clear()
    assert decoder.acquainted(latents(50)) is decoder
    assert not calls
    far = decoder.acquainted(1e3 * latents(50))
    assert calls
    calls.clear()
    assert far.acquainted(1e3 * latents(60)) is far
    assert not calls


def test_acquaintance_leaves_the_decoder_to_those_who_use_it():
    # far out its output is flat, and what is chosen there is not what is chosen on the data
    plain = scaled(1.0, 0.0, nn.Tanh, torch.float32)
    decoder = Decoder(plain, latent_dim=2)
    z = latents(40)
    described, jacobian = decoder.describe(), decoder.jacobian(z)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        far = decoder.acquainted(1e4 * z)
    assert far is not decoder
    assert decoder.describe() == described
    assert torch.equal(decoder.jacobian(z), jacobian)
    with decoder.counting() as work:
        far(z)
    assert work.values == len(z)


def test_kinks_right_at_the_probe_do_not_speak_against_automatic_differentiation():
    # among the units of a large generator there is always one; differences see the mean of the two slopes there
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64, bias=False), nn.ReLU(), nn.Linear(64, 30))
    first = net[0].weight[:4].detach()
    on_kinks = torch.stack([-first[:, 1], first[:, 0]], dim=1) / first.norm(dim=1, keepdim=True)
    assert "forward-mode" in Decoder(net, latent_dim=2, probe=on_kinks).describe()


def test_a_decoder_that_is_constant_at_most_latents_is_not_said_to_ignore_them_all():
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))

    def rare(start):
        return Decoder(lambda z: torch.relu(z[:, :1] - start) @ weights.to(z), latent_dim=2)

    repair(rare(1.3), z)
    for start in (1.645, 2.05):  # of the first the calibration latents alone say otherwise
        with pytest.raises(FitError, match="zero on 95 % of the held-out latents or more"):
            repair(rare(start), z)
    with pytest.raises(DecoderError, match="as far as tried: its output is the same at 64 of them"):
        repair(rare(2.05), z[z[:, 0] < 2.0])


def test_what_jumps_is_refused_whatever_its_scale():
    for scale in (1e-6, 1.0, 1e6):
        plain = scaled(scale, 0.0, nn.Tanh, torch.float64)
        with pytest.raises(DecoderError, match="piecewise constant|ignores its latents"):
            Decoder(lambda z, plain=plain: torch.round(plain(z) * 8) / 8, latent_dim=2, probe=scale * latents(8))
    with pytest.raises(DecoderError, match="piecewise constant"):
        Decoder(lambda z: torch.round(scaled(1e-6, 0.0, nn.Tanh, torch.float64)(z) * 8) / 8, latent_dim=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [torch.round, lambda y: (y > 0.5).to(y), lambda y: torch.floor(y + 0.5)])
def test_what_rounds_the_probe_latents_alike_is_refused_too(step, dtype):
    """As many a decoder whose outputs are below a half does; the few latents of the probe then see a constant."""
    for seed in range(4):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 6)).to(dtype)
        assert net(latents(2000).to(dtype)).abs().max() > 0.5
        with pytest.raises(DecoderError, match="piecewise constant"):
            Decoder(lambda z, net=net: step(net(z)), latent_dim=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [30.0, 3e3])
def test_what_is_flat_at_the_probe_but_continuous_is_taken(far, dtype):
    # its latents are elsewhere
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 6)).to(dtype)
    assert "flat at all" in Decoder(lambda z: net((z - far).relu()), latent_dim=2).describe()
    assert Decoder(lambda z: net(torch.sigmoid(5 * (z - far)).pow(4)), latent_dim=2).output_dim == 6


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda():
    decoder = Decoder(net().cuda())
    z = latents()
    assert decoder(z).device.type == "cpu"
    assert decoder(z.cuda()).device.type == "cuda"
    assert torch.allclose(decoder.jacobian(z), Decoder(net()).jacobian(z), atol=1e-5)


class _WithProperty(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(9, 5)

    def forward(self, z, value):
        return torch.tanh(self.layer(torch.cat([z, value], dim=1)))


def test_a_condition_that_does_not_fit_is_told_what_would():
    with pytest.raises(DecoderError, match=r"pass \[0.5\]"):
        Decoder(_WithProperty(), latent_dim=8, condition=0.5)
    with pytest.raises(DecoderError, match="One condition serves all rows"):
        Decoder(_WithProperty(), latent_dim=8, condition=torch.rand(300))
    assert Decoder(_WithProperty(), latent_dim=8, condition=[0.5]).output_dim == 5


def test_batch_sizes_are_read_off_whole_numbers_of_an_error_only():
    error = RuntimeError("expected (7, 3) of 10240, got 4x3 and 1.5; 16 rows, see x12.")
    assert _batches(error) == [7, 3, 16]


def test_a_property_that_cannot_be_read_tells_no_width():
    class Unfitted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(3)

        @property
        def latent_dim(self):
            raise RuntimeError("not fitted yet")

        def forward(self, z):
            return self.net(z)

    assert Decoder(Unfitted()).latent_dim == 3


def test_distances_from_centres_have_no_slope_at_them():
    """As torch has it in reverse; a decoder of radial basis functions is asked for its own centres."""
    centres = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))

    def decode(z):
        return torch.exp(-(torch.cdist(z, centres) ** 2))

    decoder = Decoder(decode, latent_dim=2)
    expected = torch.func.vmap(torch.func.jacrev(lambda z: torch.exp(-(z - centres).square().sum(1))))(centres)
    assert "explicit distances" in decoder.describe()
    torch.testing.assert_close(decoder.jacobian(centres), expected)


class HalfOfIt(nn.Module):
    """The last layer is in half precision."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body, self.head = nn.Linear(2, 8), nn.Linear(8, 3).half()

    def forward(self, z):
        return self.head(torch.tanh(self.body(z)).half())


class BackInSingle(HalfOfIt):
    """As it is done behind a part in half precision, so that the dtype of the output does not tell."""

    def forward(self, z):
        return super().forward(z).float()


class UnderAutocast(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 5))
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, z):
        with torch.autocast("cpu", torch.float16):
            return self.net(z) * self.scale


class HalfUnlessTold(HalfOfIt):
    """Generators that were trained in mixed precision have such an option."""

    def forward(self, z, single=False):
        dtype = torch.float32 if single else torch.float16
        return nn.functional.linear(self.body(z).tanh().to(dtype), self.head.weight.to(dtype)).float()


class HalfBeside(HalfOfIt):
    """What is not taken may be in half precision."""

    def forward(self, z):
        return self.body(z), super().forward(z)


class MappedInHalf(HalfOfIt):
    def forward(self, z):
        return torch.vmap(super().forward)(z).float()


@pytest.mark.parametrize("model", [HalfOfIt, BackInSingle, UnderAutocast, MappedInHalf])
def test_a_part_in_half_precision_is_refused_whatever_the_output_is_cast_to(model):
    words = []
    for seed in range(6):
        with pytest.raises(DecoderError) as caught:
            Decoder(model(seed), latent_dim=2)
        words.append(str(caught.value))
    # where it does not look stepped
    assert any("a part of its output in torch.float16" in one for one in words)


def test_a_model_that_converts_what_it_is_given_has_an_option_against_that():
    model = HalfUnlessTold(0)
    with pytest.raises(DecoderError, match=r"its own option against that \(condition=\)"):
        Decoder(model)
    decoder = Decoder(model, condition={"single": True})
    assert torch.equal(decoder(latents()).float(), model(latents().float(), single=True))


class ConstantsInHalf(nn.Module):
    """So steep that its second differences pass for roundings."""

    def __init__(self):
        super().__init__()
        self.net = net(2, 64)
        self.register_buffer("weights", torch.ones(64, dtype=torch.float16))

    def forward(self, z):
        return torch.sin(300 * self.net(z)) * self.weights.clone()


def test_constants_in_half_precision_are_let_be():
    Decoder(ConstantsInHalf(), latent_dim=2)


def test_half_precision_beside_the_output_is_let_be():
    model = HalfBeside(0)
    decoder = Decoder(model, latent_dim=2, output=0)
    z = torch.randn(3, 2)
    torch.testing.assert_close(decoder.jacobian(z), model.body.weight.detach().expand(3, -1, -1))
