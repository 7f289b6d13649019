"""Hyperparameters of a Gaussian process whose outputs share one kernel, by marginal likelihood.

With one kernel for all D outputs the data enter only through ``Y Yᵀ``, and the amplitude has a closed
form, so two numbers remain: the length scale and the ratio of noise to signal.  Everything here is in units of the
kernel's amplitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from .._arrays import as_tensor
from ..errors import FitError
from ..smooth_map import SmoothMap

#: rows times outputs that are held at once
ENTRIES = 2**24
#: principal components kept of the outputs; what they leave counts as noise
_COMPONENTS = 64
_NOISE_RANGE = (1e-4, 1e2)
_STEPS = 25
#: in the evidence a row and output
_TOLERANCE = 1e-6
#: bisections of the range of length scales
_HALVINGS = 10


@dataclass(frozen=True)
class Targets:
    """Standardised outputs: ``Y Yᵀ / variance ≈ factor factorᵀ + rest · I``.

    Attributes:
        factor: (n, p), exact where ``rest`` is zero.
        rest: mean square an entry that the factor leaves out.
    """

    factor: Tensor
    rest: float


@dataclass(frozen=True)
class Hyperparameters:
    """What maximises the evidence.

    Attributes:
        length_scale: in the units of the points.
        noise: variance of the noise over the variance of the signal.
        variance: of the signal, in units of the outputs' total variance.
        evidence: log marginal likelihood (or its bound) a row and output, up to a constant.
    """

    length_scale: float
    noise: float
    variance: float
    evidence: float


def outputs(decoder: SmoothMap, latents: Tensor, data: Any, rows: Tensor) -> Tensor:
    """Rows (n, D) of what the process is conditioned on: the data, or the decoder's outputs without data."""
    step = max(1, ENTRIES // (4 * decoder.output_dim))
    found = [
        (decoder(latents[block]) if data is None else as_tensor(data[block.to("cpu").numpy()])).flatten(1)
        for block in rows.split(step)
    ]
    result = torch.cat(found).to(latents)
    if not bool(torch.isfinite(result).all()):
        name = "the decoder's outputs on `latents`" if data is None else "`data`"
        raise FitError(f"{name} must be finite; some are NaN or infinite. Remove those rows first.")
    return result


def reduce(values: Tensor, *, exact: bool, seed: int) -> Targets:
    """Centre the outputs (n, D) and keep what the evidence needs of them.

    Raises:
        FitError: the outputs do not vary.
    """
    centred = values - values.mean(0)
    total = float(centred.square().sum())
    if not total > 1e-20 * float(values.square().sum()):
        raise FitError(
            "the outputs must vary over the latents; they are constant. Check that `latents` are latents of this "
            "decoder, in its own units."
        )
    rows = len(centred)
    centred = centred * math.sqrt(rows / total)
    if exact:
        if centred.shape[1] > rows:
            square, basis = torch.linalg.eigh(centred @ centred.T)
            centred = basis * square.clamp_min(0).sqrt()
        return Targets(centred, 0.0)
    if centred.shape[1] <= _COMPONENTS:
        return Targets(centred, 0.0)
    left, sizes, _ = randomized_svd(centred.cpu().numpy(), _COMPONENTS, random_state=seed, n_iter=2)
    factor = torch.from_numpy(left * sizes).to(centred)
    return Targets(factor, max(0.0, 1 - float(factor.square().sum()) / rows))


def maximise(
    points: Tensor, targets: Targets, inducing: Tensor | None, length_scales: tuple[float, float]
) -> Hyperparameters:
    """Maximise the evidence over length scale and noise.

    Args:
        points: (n, d).
        targets: of the same rows.
        inducing: (m, d) for Titsias' bound; ``None`` for the exact evidence.
        length_scales: the range allowed.
    """
    low, high = length_scales
    with torch.device(points.device):
        kernel = gpytorch.kernels.RBFKernel(lengthscale_constraint=_interval(low, high))
        noise = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=_interval(*_NOISE_RANGE))
    kernel, noise = kernel.to(points), noise.to(points)

    def loss() -> tuple[Tensor, Tensor]:
        ratio = noise.noise.squeeze()
        if inducing is None:
            return _exact(kernel(points).to_dense(), ratio, targets)
        return _titsias(kernel(inducing).to_dense(), kernel(inducing, points).to_dense(), ratio, targets)

    def place(start: tuple[float, float]) -> float:
        # tensors, as gpytorch rounds numbers to the default precision
        kernel.lengthscale, noise.noise = points.new_tensor(start).unbind()
        return float(loss()[0])

    with torch.no_grad():
        inner = [low * (high / low) ** share for share in (0.1, 0.35, 0.65, 0.9)]
        place(min(((scale, ratio) for scale in inner for ratio in (0.01, 0.3)), key=place))
    parameters = [*kernel.parameters(), *noise.parameters()]
    solver = torch.optim.LBFGS(parameters, max_iter=_STEPS, tolerance_change=_TOLERANCE, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        value = loss()[0]
        value.backward()
        return float(value.detach())

    solver.step(closure)
    with torch.no_grad():
        value, variance = loss()
    return Hyperparameters(kernel.lengthscale.item(), noise.noise.item(), float(variance), -float(value))


def _interval(low: float, high: float) -> gpytorch.constraints.Interval:
    """A range of a parameter, whose ends gpytorch itself would round to the precision that the caller made default."""
    found = gpytorch.constraints.Interval(0.0, 1.0)
    found.lower_bound, found.upper_bound = (torch.tensor(end, dtype=torch.float64) for end in (low, high))
    return found


def _exact(kernel: Tensor, noise: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """``½ log(tr(Yᵀ A⁻¹ Y)/n) + log det(A)/2n`` with ``A = K + νI``, and the best amplitude."""
    rows = len(kernel)
    root, _ = cholesky(kernel + noise * torch.eye(rows, dtype=kernel.dtype, device=kernel.device))
    variance = torch.linalg.solve_triangular(root, targets.factor, upper=False).square().sum() / rows
    return 0.5 * variance.log() + root.diagonal().log().sum() / rows, variance


def _titsias(inner: Tensor, cross: Tensor, noise: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """The same with ``A = Q + νI`` and the penalty ``tr(K - Q)/2ν`` (Titsias 2009), in O(n m²)."""
    rows = cross.shape[1]
    root, _ = cholesky(inner)
    white = torch.linalg.solve_triangular(root, cross, upper=False)
    capacity = torch.eye(len(inner), dtype=inner.dtype, device=inner.device) + white @ white.T / noise
    root, _ = cholesky(capacity)
    fitted = torch.linalg.solve_triangular(root, white @ targets.factor, upper=False)
    unfitted = rows - len(inner) + torch.cholesky_inverse(root).diagonal().sum()
    square = (targets.factor.square().sum() - fitted.square().sum() / noise) / noise
    variance = (square + targets.rest * unfitted / noise) / rows
    missing = (rows - white.square().sum()).clamp_min(0)
    half_log_det = 0.5 * rows * noise.log() + root.diagonal().log().sum()
    return 0.5 * variance.log() + (half_log_det + 0.5 * missing / noise) / rows, variance


def cholesky(matrix: Tensor) -> tuple[Tensor, float]:
    """Lower Cholesky factor and the jitter, relative to the mean diagonal, that it needed.

    Raises:
        FitError: the matrix is not positive definite even with a jitter of 1e-4.
    """
    size = matrix.diagonal().mean().detach()
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for jitter in (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4):
        root, info = torch.linalg.cholesky_ex(matrix + jitter * size * eye if jitter else matrix)
        if not int(info):
            return root, jitter
    raise FitError(
        "the Gaussian process's kernel matrix must be positive definite; it is not, even with a jitter of 1e-4. "
        "Check the latents for values of extreme size."
    )


def largest_length_scale(accepted: Callable[[float], bool], low: float, high: float) -> float:
    """The largest length scale from ``low`` to ``high``, itself too long, that is accepted; ``low`` if none.

    By bisection in the logarithm.
    """
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if accepted(middle) else (low, middle)
    return low
