"""The rows of shared WRAPPING.md in miniature: what can work does and is right; what cannot is refused with words."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from posthoc_metric.decoder import Decoder
from posthoc_metric.errors import DecoderError, DerivativeWarning


def seeded(make, seed=0):
    """A module whose weights come from a generator of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def mlp(act=nn.Tanh, width=16, out=12, dim=3):
    return nn.Sequential(nn.Linear(dim, width), act(), nn.Linear(width, width), act(), nn.Linear(width, out))


class Wrap(nn.Module):
    """``then(net(z))`` with something awkward on the way."""

    def __init__(self, then, net=None):
        super().__init__()
        self.net = net or mlp()
        self.then = then

    def forward(self, z):
        return self.then(self.net(z))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(3, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, z):
        hidden, _ = self.cell(z[:, None, :].expand(-1, 5, -1))
        return self.head(hidden)


class Attention(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.up = nn.Linear(3, 6 * 8)
        self.norm = norm
        self.project = nn.Linear(8, 24)

    def forward(self, z):
        tokens = self.up(z).view(-1, 8, 6).transpose(1, 2)
        parts = self.project(tokens).chunk(3, dim=-1)
        query, key, value = (part.reshape(-1, 6, 2, 4).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(-1, 6, 8)
        if self.norm is None:
            return mixed
        return self.norm(mixed.transpose(1, 2).reshape(-1, 8, 2, 3))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(3, 6 * 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, z):
        return self.layers(self.up(z).view(-1, 6, 8))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(3, 4 * 4)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.GroupNorm(2, 8),
            nn.Dropout(0.5), nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, z):
        return self.layers(self.up(z).view(-1, 4, 2, 2))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, z):
        return torch.utils.checkpoint.checkpoint(self.net, z, use_reentrant=False)


class NoGrad(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.net = mlp()
        self.context = context

    def forward(self, z):
        with self.context():
            return self.net(z)


class LegacySine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.cos(x)


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(out=4)

    def forward(self, z):
        out = torch.zeros(z.shape[0], 8, dtype=z.dtype)
        out[:, :4] = self.net(z)
        out[:, 4:] = self.net(2 * z)
        return out


class ItemBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, z):
        return self.net(z) if z.shape[0] and z.detach().abs().max().item() > -1 else z


class ChangesInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, z):
        z.mul_(2.0)
        return self.net(z)


class Grid(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("image", torch.randn(1, 2, 9, 9))
        self.net = mlp(out=2 * 16)

    def forward(self, z):
        grid = torch.tanh(self.net(z)).view(-1, 4, 4, 2)
        image = self.image.expand(z.shape[0], -1, -1, -1)
        return F.grid_sample(image, grid, mode="bicubic", align_corners=False)


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(out=4)
        self.register_buffer("centres", torch.randn(7, 4))

    def forward(self, z):
        return torch.cdist(self.net(z), self.centres)


def normed(norm):
    net = mlp()
    norm(net[0])
    norm(net[4])
    return net


def euler(x):
    """An ODE's solution at 1 by as many steps as its fastest row asks for, as solvers of adaptive step size do it."""
    count = 8 + int(x.detach().abs().amax() * 40)
    for _ in range(count):
        x = x + torch.cos(x) / count
    return x


#: name -> a module, and words its description must hold
WORKS = {
    "tanh": (mlp, "forward-mode"),
    "relu": (lambda: mlp(nn.ReLU), "forward-mode"),
    "convolutions with batch norm": (Convolutional, "forward-mode"),
    "spectral norm": (lambda: normed(nn.utils.parametrizations.spectral_norm), "forward-mode"),
    "weight norm": (lambda: normed(nn.utils.parametrizations.weight_norm), "forward-mode"),
    "old weight norm": (lambda: normed(nn.utils.weight_norm), "forward-mode"),
    "LSTM": (lambda: Recurrent(nn.LSTM), ""),
    "GRU": (lambda: Recurrent(nn.GRU), ""),
    "RNN": (lambda: Recurrent(nn.RNN), ""),
    "attention": (Attention, "math attention"),
    "attention with group norm": (lambda: Attention(nn.GroupNorm(2, 8)), "math attention"),
    "attention with plain group norm": (lambda: Attention(nn.GroupNorm(2, 8, affine=False)), "contiguous inputs"),
    "transformer": (Transformer, "math attention"),
    "gradient checkpointing": (Checkpointed, "forward-mode"),
    "no_grad inside": (lambda: NoGrad(torch.no_grad), "d forward columns"),
    "grid_sample": (Grid, "reverse-mode AD twice"),
    "cdist": (Distances, "explicit distances"),
    "legacy autograd function": (lambda: Wrap(LegacySine.apply), "reverse-mode AD twice"),
    "in-place on a fresh buffer": (Buffered, ""),
    "branch on item": (ItemBranch, ""),
    "in-place on the input": (ChangesInput, ""),
    "scripted": (lambda: torch.jit.script(mlp()), ""),
    "traced": (lambda: torch.jit.trace(mlp(), torch.randn(3, 3)), ""),
    "frozen script": (lambda: torch.jit.freeze(torch.jit.script(mlp().eval())), ""),
    "fx": (lambda: torch.fx.symbolic_trace(mlp()), ""),
    "data parallel": (lambda: nn.DataParallel(mlp()), ""),
    "no parameters": (lambda: torch.sin, ""),
    "half precision": (lambda: mlp().to(torch.bfloat16), "float32 copy"),
}

#: name -> a module whose derivatives are finite differences
DIFFERENCES = {
    "inference mode": lambda: NoGrad(torch.inference_mode),
    "detach": lambda: Wrap(torch.detach),
    "partial detach": lambda: Wrap(lambda x: torch.cat([x[:, :6], x[:, 6:].detach()], dim=1)),
    "numpy inside": lambda: Wrap(lambda x: torch.from_numpy(np.tanh(x.detach().numpy()))),
}


def float64_jacobian(module, z):
    """The oracle: central differences in float64 of a copy that shares no code with the routes."""
    h = 1e-5
    columns = []
    for j in range(z.shape[1]):
        step = torch.zeros_like(z)
        step[:, j] = h
        with torch.no_grad():
            columns.append((module(z + step) - module(z - step)).flatten(1) / (2 * h))
    return torch.stack(columns, dim=-1)


def in_float64(module):
    """A float64 twin; modules that cannot be converted are rebuilt by their own maker."""
    return module.double() if isinstance(module, nn.Module) else module


def relative(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


#: what older versions of PyTorch differentiate by another route, or only by differences
RECENT = ("gradient checkpointing", "grid_sample")


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_can_work_is_right(name, dtype):
    make, words = WORKS[name]
    if name in RECENT and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("the route that is expected is that of torch 2.13")
    if name == "half precision" and dtype == torch.float64:
        pytest.skip("half precision is its own case")
    if name == "frozen script" and dtype == torch.float64:
        pytest.skip("a frozen script has its precision baked in")
    module = seeded(make)
    if name == "half precision":
        twin = in_float64(seeded(make))
    elif name == "frozen script":
        twin = in_float64(seeded(mlp))
    else:
        twin = in_float64(seeded(make))
        module = module.to(dtype) if isinstance(module, nn.Module) else module
    if isinstance(twin, nn.Module) and name not in ("frozen script",):
        twin.eval()
    decoder = Decoder(module, latent_dim=3)
    assert words in decoder.describe()
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    v = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    before = z.clone()
    expected = float64_jacobian(lambda x: twin(x.clone()), z)
    value, jacobian = decoder.value_and_jacobian(z)
    tolerance = 1e-4 if decoder.dtype == torch.float32 else 1e-8
    if name == "LSTM" and dtype == torch.float32:
        assert "no mkldnn" in decoder.describe() or "twice" in decoder.describe()
    assert value.dtype == jacobian.dtype == torch.float64
    assert relative(jacobian, expected) < tolerance
    assert relative(decoder.jvp(z, v)[1], torch.einsum("bij,bj->bi", expected, v)) < tolerance
    u = torch.randn(5, decoder.output_dim, generator=generator, dtype=torch.float64)
    assert relative(decoder.vjp(z, u)[1], torch.einsum("bij,bi->bj", expected, u)) < tolerance
    assert torch.equal(z, before)
    assert relative(decoder(z), twin(z.clone()).detach().flatten(1)) < (1e-5 if tolerance == 1e-4 else 1e-12)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_ad_gets_wrong_without_a_word_falls_to_differences(name):
    module = seeded(DIFFERENCES[name])
    with pytest.warns(DerivativeWarning, match="finite differences"):
        decoder = Decoder(module, latent_dim=3)
    assert "finite differences" in decoder.describe()
    twin = seeded(DIFFERENCES[name]).double()
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(5))
    expected = float64_jacobian(twin, z.double())
    value, jacobian = decoder.value_and_jacobian(z)
    assert jacobian.dtype == torch.float32
    assert relative(jacobian, expected) < 1e-4
    assert relative(value, twin(z.double())) < 1e-5
    u = torch.ones(5, decoder.output_dim)
    assert relative(decoder.vjp(z, u)[1], expected.sum(dim=1)) < 1e-4


def test_a_numpy_function_is_differentiated_in_float64():
    weight = np.random.default_rng(0).normal(size=(3, 6))
    with pytest.warns(DerivativeWarning):
        decoder = Decoder(lambda z: np.tanh(np.asarray(z) @ weight), latent_dim=3)
    z = np.random.default_rng(1).normal(size=(4, 3))
    value, jacobian = decoder.value_and_jacobian(z)
    expected = (1 - np.tanh(z @ weight) ** 2)[:, :, None] * weight.T[None]
    assert isinstance(jacobian, np.ndarray)
    assert np.abs(jacobian - expected).max() < 1e-8
    assert np.allclose(value, np.tanh(z @ weight), atol=1e-14)


def test_a_float32_only_function_has_four_digits():
    weight = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    with pytest.warns(DerivativeWarning, match="float32"):
        decoder = Decoder(lambda z: np.tanh(np.asarray(z, dtype=np.float32) @ weight), latent_dim=3)
    z = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    expected = (1 - np.tanh(z.astype(float) @ weight) ** 2)[:, :, None] * weight.T[None]
    assert np.abs(decoder.jacobian(z) - expected).max() / np.abs(expected).max() < 1e-4


def test_a_rough_float32_only_function_is_not_said_to_have_four_digits():
    def rough(z):
        x = np.asarray(z, dtype=np.float32)
        return np.sin(150.0 * x[:, :1]) + np.arange(3, dtype=np.float32) * x[:, 1:2]

    with pytest.warns(DerivativeWarning, match=r"in float32, where those of two steps differ by \d"):
        Decoder(rough, latent_dim=2)


class BatchNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.norm = nn.BatchNorm1d(12, track_running_stats=False)

    def forward(self, z):
        return self.norm(self.net(z))


class Sampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, z):
        x = self.net(z)
        return x + 0.1 * torch.randn_like(x)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.calls = 0

    def forward(self, z):
        self.calls += 1
        return self.net(z) + self.calls


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh())


def quantised():
    backend = "qnnpack" if "qnnpack" in torch.backends.quantized.supported_engines else "none"
    if backend == "none":
        pytest.skip("this build of torch has no quantised kernels")
    torch.backends.quantized.engine = backend
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(mlp().eval(), {nn.Linear})


REFUSED = {
    "batch norm by the batch": (BatchNormed, "row i of the output depends on row j"),
    "batch mean": (lambda: Wrap(lambda x: x - x.mean(dim=0)), "couples the rows"),
    "steps for all rows": (lambda: Wrap(euler), "couples the rows.*a solver chooses its steps for all rows at once"),
    "sampling": (Sampling, "two calls differ"),
    "functional dropout": (lambda: Wrap(lambda x: F.dropout(x, 0.5)), "two calls differ"),
    "state between calls": (Counting, "two calls differ"),
    "round": (lambda: Wrap(lambda x: torch.round(x * 20) / 20), "piecewise constant"),
    "coarse grey levels": (lambda: Wrap(lambda x: torch.floor(torch.sigmoid(x) * 255) / 255), "piecewise constant"),
    "integers": (lambda: Wrap(lambda x: (x * 10).long()), "piecewise constant"),
    "argmax": (lambda: Wrap(lambda x: x.argmax(dim=1, keepdim=True)), "piecewise constant"),
    "constant": (lambda: Wrap(lambda x: torch.ones_like(x)), "ignores its latents"),
    "sqrt of a clamp": (lambda: Wrap(lambda x: torch.sqrt(torch.relu(x))), "sqrt\\(relu"),
    "NaN": (lambda: Wrap(lambda x: torch.log(x - 100)), "finite numbers"),
    "lazy": (lazy, "not initialised"),
    "meta": (lambda: nn.Linear(3, 4, device="meta"), "meta device"),
    "complex": (lambda: Wrap(lambda x: torch.complex(x, x)), "must return real numbers; .*complex.*view_as_real"),
    "batch axis last": (lambda: Wrap(lambda x: x.T), "batch axis first"),
    "quantised": (quantised, "couples the rows|piecewise constant"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(name):
    make, words = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = seeded(make)
    with pytest.raises(DecoderError, match=words):
        Decoder(module, latent_dim=3)


def test_rows_that_only_rounding_couples_are_refused_as_such_and_in_float64_taken():
    """As the logarithm of a spectrum is rounded, whose sums run in another order in another batch."""
    module = seeded(lambda: Wrap(lambda x: (x + 1e6 * x.sum()) - 1e6 * x.sum()))
    with pytest.raises(DecoderError, match=r"rounds too coarsely in torch.float32.*with \.double\(\)"):
        Decoder(module, latent_dim=3)
    assert Decoder(module.double(), latent_dim=3).output_dim


def test_what_is_advised_for_complex_outputs_works():
    for real in (torch.view_as_real, torch.abs, torch.angle):
        decoder = Decoder(lambda z, real=real: real(torch.complex(z + 2, z.sin())), latent_dim=3)
        assert decoder.output_dim == (6 if real is torch.view_as_real else 3)


def test_derivatives_that_are_not_finite_name_the_row():
    with pytest.raises(DecoderError) as caught:
        Decoder(seeded(lambda: Wrap(lambda x: torch.sqrt(torch.relu(x)))), latent_dim=3)
    assert caught.value.rows


def test_a_decoder_with_poles_is_usable_beside_them():
    with pytest.warns(DerivativeWarning, match=r"NaN or infinite at \d+ of 68 probe latents.*row by row"):
        decoder = Decoder(lambda z: torch.cat([torch.tanh(z), torch.sqrt(torch.relu(z[:, :1]))], dim=1), latent_dim=3)
    z = torch.tensor([[0.5, 0.1, 0.2], [-0.5, 0.1, 0.2], [1.5, 0.0, 0.0]], dtype=torch.float64)
    assert torch.isfinite(decoder(z)).all()
    with pytest.raises(DecoderError, match="row 1 is NaN or infinite") as caught:
        decoder.jacobian(z)
    assert caught.value.rows == (1,)
    jacobian = decoder.jacobian(z[[0, 2]])
    assert torch.allclose(jacobian[:, 3, 0], 0.5 / z[[0, 2], 0].sqrt())


STEPPED = {
    "rounded": lambda x: torch.round(x * 4) / 4,
    "grey levels": lambda x: torch.floor(torch.sigmoid(x) * 255) / 255,
    "thresholded": lambda x: (x > 0).to(x),
    "sign": torch.sign,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STEPPED)
def test_single_outputs_that_jump_are_named(name, dtype):
    net = seeded(mlp).to(dtype)

    def partly(z):
        x = net(z)
        return torch.cat([x[:, :9], STEPPED[name](x[:, 9:] - x[:, 9:].mean().detach() * 0), x[:, :1] * 0], dim=1)

    with pytest.warns(DerivativeWarning, match="of the decoder's 13 outputs 9, 10, 11 jump"):
        Decoder(partly, latent_dim=3)


@pytest.mark.parametrize("far", [1e4, 1e8])
def test_latents_that_are_rounded_inside_are_no_jumps(far):
    net = seeded(mlp).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Decoder(lambda z: torch.cat([net((z + far) - far), torch.tanh(z)], dim=1), latent_dim=3)


@pytest.mark.parametrize("clamp", [torch.relu, F.hardtanh, lambda x: torch.clamp(50 * x, 0, 1), F.hardsigmoid])
def test_outputs_that_are_clamped_or_constant_are_no_jumps(clamp):
    net = seeded(lambda: mlp(nn.ReLU, out=64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Decoder(Wrap(lambda x: torch.cat([clamp(4 * x), torch.zeros_like(x)], dim=1), net), latent_dim=3)


@pytest.mark.parametrize("rows", [1, 5, 12])
@pytest.mark.parametrize("size", [4, 5])
def test_exported_with_one_batch_size_takes_any(rows, size):
    """Four is the number of rows that a model is first called on."""
    module = seeded(mlp).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (torch.randn(size, 3),))
    decoder = Decoder(program)
    assert f"batches of {size}" in decoder.describe()
    z = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float64_jacobian(seeded(mlp).double(), z)
    assert relative(decoder.jacobian(z), expected) < 1e-4
    assert decoder(z).shape == (rows, 12)


def test_compiled_module():
    decoder = Decoder(torch.compile(seeded(mlp), backend="eager"), latent_dim=3)
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert relative(decoder.jacobian(z), float64_jacobian(seeded(mlp).double(), z)) < 1e-4
