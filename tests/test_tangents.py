"""Rules for operations with constants, beside PyTorch's own derivatives."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import posthoc_metric as pm
from posthoc_metric.decoder import tangents
from posthoc_metric.decoder.derivatives import columns_by_vmap, forward
from posthoc_metric.decoder.tangents import DirectTangents

ROWS, CHANNELS = 5, 6


def _constant(*shape: int) -> Tensor:
    return 1 + torch.arange(math.prod(shape), dtype=torch.float64).sin().view(shape) / 2


def _of(module: nn.Module, *shape: int) -> Callable[[Tensor], Tensor]:
    """What a module in eval mode, with constants that are not all one or zero, makes of rows in a shape."""
    module = module.double().eval()
    for number, tensor in enumerate((*module.parameters(), *module.buffers())):
        if tensor.is_floating_point():
            tensor.data = _constant(*tensor.shape) + number
    return lambda x: module(x.view(-1, *shape) if shape else x)


def _in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x * C + 1


C = _constant(CHANNELS)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda x: x * C,
    "product from the left": lambda x: C * x,
    "product by name": lambda x: torch.mul(C, x),
    "number": lambda x: 2 * x,
    "integers": lambda x: x * torch.arange(CHANNELS),
    "mask": lambda x: x * (torch.arange(CHANNELS) > 2),
    "outer product": lambda x: x[:, :, None] * C,
    "constant without axes": lambda x: x * torch.tensor(3.0),
    "sum": lambda x: x + C,
    "sum with a number": lambda x: 1 + x,
    "sum that spreads": lambda x: x[:, :1] + C,
    "sum in double": lambda x: x.float() + C,
    "share of a sum": lambda x: torch.add(x, C, alpha=3),
    "difference": lambda x: x - C,
    "difference from a constant": lambda x: C - x,
    "difference by name": lambda x: torch.sub(C, x),
    "difference from a number": lambda x: 1 - x,
    "quotient": lambda x: x / C,
    "quotient by a number": lambda x: x / 3,
    "whole quotient": lambda x: x + torch.div(x, C, rounding_mode="floor"),
    "quotient of a constant": lambda x: C / (2 + x.square()),
    "quotient of a number": lambda x: 1 / (2 + x.square()),
    "sum done over in place": lambda x: (x + C).mul_(x) + x,
    "both vary": lambda x: x * x.sin() + x / (2 + x.square()) - x,
    "linear": lambda x: functional.linear(x, _constant(3, CHANNELS), _constant(3)),
    "linear with a bias by name": lambda x: functional.linear(x, _constant(3, CHANNELS), bias=_constant(3)),
    "convolution": _of(nn.Conv1d(3, 2, 3, padding=2, dilation=2), 3, 2),
    "transposed convolution": _of(nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), 3, 2, 1),
    "weight that varies": lambda x: functional.linear(C.expand(ROWS, -1), x, _constant(ROWS)),
    "batch norm": _of(nn.BatchNorm1d(CHANNELS)),
    "batch norm of images": _of(nn.BatchNorm1d(3), 3, 2),
    "batch norm by the batch": lambda x: functional.batch_norm(x, None, None, C, C, training=True),
    "layer norm": _of(nn.LayerNorm(CHANNELS)),
    "layer norm of two axes": _of(nn.LayerNorm((3, 2)), 3, 2),
    "layer norm by position": lambda x: torch.layer_norm(x, (CHANNELS,), C, C),
    "group norm": _of(nn.GroupNorm(2, CHANNELS)),
    "group norm of images": _of(nn.GroupNorm(3, 3), 3, 2),
    "root mean square": _of(nn.RMSNorm(CHANNELS)),
    "root mean square with its own eps": _of(nn.RMSNorm(CHANNELS, eps=0.1)),
    "instance norm": _of(nn.InstanceNorm1d(3, affine=True), 3, 2),
    "plain instance norm": _of(nn.InstanceNorm2d(1), 1, 3, 2),
    "instance norm by fixed means": _of(nn.InstanceNorm1d(3, affine=True, track_running_stats=True), 3, 2),
    "leaky": _of(nn.PReLU()),
    "leaky by channel": _of(nn.PReLU(3), 3, 2),
    "leaky number": lambda x: x * functional.prelu(x[0, 0], C[:1]),
    "reflected difference from what varies": lambda x: Tensor.__rsub__(C, x),
    "reflected quotient of what varies": lambda x: Tensor.__rdiv__(C, x),
    "root mean square of half precision": lambda x: functional.rms_norm(x.bfloat16(), (CHANNELS,), C.float()),
    "instance norm of half precision": lambda x: functional.instance_norm(
        x.view(-1, 3, 2).bfloat16(), weight=C[:3].float()
    ),
    "batch norm of half precision": lambda x: functional.batch_norm(
        x.bfloat16(), C.float(), C.float(), C.float(), C.float()
    ),
    "vmap of its own": lambda x: torch.func.vmap(lambda row: row * C + x[0] / 3)(x),
    "jvp of its own": lambda x: torch.func.jvp(lambda y: y * C + x / 3, (2 * x,), (1 - x,))[1] / 2,
    "inference mode inside": lambda x: 2 * _in_inference_mode(x),
    "compiled": torch.compile(lambda x: functional.layer_norm(x * C, (CHANNELS,), C, C) + 1, backend="eager"),
}
RULED = ("product", "sum", "quotient of a constant", "linear", "batch norm", "layer norm", "group norm", "leaky")


@pytest.fixture
def points() -> Tensor:
    return torch.randn(ROWS, CHANNELS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_values_and_derivatives_are_those_of_torch(function: Callable[[Tensor], Tensor], points: Tensor):
    ways = lambda: (forward(function, points, points.flip(0).cos()), columns_by_vmap(function, points, 0, 3))  # noqa: E731
    expected = ways()
    with DirectTangents():
        found = ways()
    for (value, pushed), (_, right) in zip(found, expected, strict=True):
        assert torch.equal(value, function(points))
        torch.testing.assert_close(pushed, right, rtol=1e-12, atol=1e-14)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rules that gave a tangent, by name."""
    names = []

    def noted(rule: tangents.Rule) -> tangents.Rule:
        def ask(done: tangents._Done) -> Tensor | None:
            found = rule(done)
            if found is not None:
                names.append(rule.__name__)
            return found

        return ask

    for func, rule in tangents._RULES.items():
        monkeypatch.setitem(tangents._RULES, func, noted(rule))
    return names


@pytest.mark.parametrize("name", [*RULED, "root mean square", "instance norm"])
def test_rules_take_the_place_of_torch(name: str, points: Tensor, asked: list[str]):
    with DirectTangents():
        forward(FUNCTIONS[name], points, points)
    assert asked


def test_a_decoder_that_scales_and_normalises_is_differentiated_by_them(asked: list[str]):
    module = nn.Sequential(nn.Linear(2, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 8))
    decoder = pm.Decoder(lambda z: 2 * module(z) - 1, latent_dim=2)
    asked.clear()
    decoder.jacobian(torch.zeros(3, 2))
    assert asked == ["_affine", "_layer_norm", "_affine", "_product", "_sum"]
