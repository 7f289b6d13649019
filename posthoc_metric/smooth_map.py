"""What a decoder is to everything after it: a smooth map with first derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ._arrays import ArrayLike, to_points
from ._precision import computes_in_single
from .errors import InvalidArgumentError


class SmoothMap(Protocol):
    """A map ``F: R^d -> R^D`` with first derivatives; batch axis first, rows independent."""

    latent_dim: int
    output_dim: int

    def __call__(self, z: Any) -> Any:
        """``F(z)``, (B, d) -> (B, D)."""

    def jvp(self, z: Any, v: Any) -> tuple[Any, Any]:
        """``F(z)`` and ``J(z) v``, each (B, D)."""

    def vjp(self, z: Any, u: Any) -> tuple[Any, Any]:
        """``F(z)`` (B, D) and ``J(z)ᵀ u`` (B, d)."""

    def value_and_jacobian(self, z: Any) -> tuple[Any, Any]:
        """``F(z)`` (B, D) and ``J(z)`` (B, D, d)."""


#: ``u -> J(z)ᵀ u``, (B, D) -> (B, d), at points that are settled; to be called once
Pull = Callable[[Tensor], Tensor]


def pull_rows(embedding: SmoothMap) -> int:
    """The most rows for which :func:`value_and_pull` saves an evaluation; 0 where it saves none.

    A :class:`SmoothMap` need not have either; one that has both says how many rows' evaluation it keeps at once.
    """
    return getattr(embedding, "pull_rows", 0) if hasattr(embedding, "value_and_pull") else 0


def value_and_pull(embedding: SmoothMap, z: Tensor) -> tuple[Tensor, Pull]:
    """``F(z)`` (B, D), and the function that takes ``u`` to ``J(z)ᵀ u``, by one evaluation where that is possible.

    ``F(z)`` must not be written into before the function is called.
    """
    if hasattr(embedding, "value_and_pull"):
        value, pull = embedding.value_and_pull(z)
        return value, pull
    return embedding(z), lambda u: embedding.vjp(z, u)[1]


def in_float64(embedding: SmoothMap) -> SmoothMap | None:
    """The same map with values of more digits, where ``embedding`` is one that computes in single precision and has it.

    A :class:`SmoothMap` need not have it.
    """
    found: SmoothMap | None = embedding.in_float64() if hasattr(embedding, "in_float64") else None
    return found


def isometric(embedding: SmoothMap) -> SmoothMap:
    """A map of the same metric with fewer outputs, where ``embedding`` has one; else itself.

    A :class:`SmoothMap` need not have it.
    """
    found: SmoothMap = embedding.isometric() if hasattr(embedding, "isometric") else embedding
    return found


def check_smooth_map(decoder: Any, names: Sequence[str] = ("jvp", "vjp", "value_and_jacobian")) -> None:
    """See that ``decoder`` is a :class:`SmoothMap`, or has at least these of its methods.

    Raises:
        InvalidArgumentError: it is not.
    """
    missing = [name for name in ("latent_dim", "output_dim", *names) if not hasattr(decoder, name)]
    if missing:
        raise InvalidArgumentError(
            f"`decoder` must be a wrapped decoder; got {type(decoder).__name__}, which lacks {', '.join(missing)}. "
            "Wrap it first: pm.Decoder(module, latent_dim=d)."
        )


def device_of(decoder: SmoothMap) -> torch.device:
    """Where a decoder computes; the CPU where it does not say."""
    return torch.device(getattr(decoder, "device", "cpu"))


_MOST_BYTES = 2**28
#: share of the largest eigenvalue of JᵀJ below which the least is lost in rounding; and roundings of the largest
#: singular value of J, times √d, below which the least is
_LOST, _ROUNDINGS = 1e-10, 8


def gram(embedding: SmoothMap, z: Tensor) -> Tensor:
    """``J(z)ᵀ J(z)``, (B, d) -> (B, d, d), in chunks whose Jacobians take at most 256 MiB."""
    rows = _jacobian_rows(embedding, z.shape[1])
    found = z.new_empty(len(z), z.shape[1], z.shape[1])
    for start in range(0, len(z), rows):
        _, jacobian = embedding.value_and_jacobian(z[start : start + rows])
        found[start : start + rows] = jacobian.mT @ jacobian
    return found


def gram_rows(embedding: SmoothMap, dim: int) -> int:
    """For how many points :func:`gram` takes 256 MiB at most for the Jacobians, and as much for what it returns."""
    return min(_jacobian_rows(embedding, dim), max(_MOST_BYTES // (8 * dim**2), 1))


def _jacobian_rows(embedding: SmoothMap, dim: int) -> int:
    return max(int(_MOST_BYTES / (8 * embedding.output_dim * dim)), 1)


def resolved_eigenvalues(values: Tensor, embedding: SmoothMap, z: Tensor) -> Tensor:
    """Ascending eigenvalues ``values`` of ``J(z)ᵀ J(z)`` (B, d), with those found anew that rounding has swamped.

    They are squares of the singular values of J, which keep twice the digits; zero where these, too, are no more than
    rounding.
    """
    lost = (values[:, 0] <= _LOST * values[:, -1]).nonzero().flatten()
    if not len(lost):
        return values
    dim = z.shape[1]
    rows = _jacobian_rows(embedding, dim)
    rounding = torch.finfo(torch.float32 if computes_in_single(embedding, z) else torch.float64).eps
    values = values.clone()
    for some in lost.split(rows):
        singular = torch.linalg.svdvals(embedding.value_and_jacobian(z[some])[1].to(values))
        known = singular > _ROUNDINGS * dim**0.5 * rounding * singular[:, :1]
        values[some] = 0.0
        values[some, dim - singular.shape[1] :] = torch.where(known, singular.square(), 0.0).flip(1)
    return values


def condition_numbers(eigenvalues: Tensor) -> Tensor:
    """κ(J) (n,) from ascending eigenvalues (n, d) of JᵀJ; ``inf`` where it is singular."""
    # without its own word for infinity nan_to_num turns that into the largest number there is
    return (eigenvalues[:, -1] / eigenvalues[:, 0]).sqrt().nan_to_num(nan=torch.inf, posinf=torch.inf)


class StackedMap:
    """``F = [F_1; ...; F_m]``: maps of one latent space with their outputs side by side.

    Args:
        maps: one or more maps with the same ``latent_dim``.

    Raises:
        InvalidArgumentError: no maps, or maps of different latent spaces.
    """

    def __init__(self, maps: Sequence[SmoothMap]):
        self.maps = tuple(maps)
        dims = [part.latent_dim for part in self.maps]
        if not dims or any(dim != dims[0] for dim in dims):
            raise InvalidArgumentError(
                f"`maps` must be at least one map, all of the same latent dimension; got latent dimensions {dims}."
            )
        self.latent_dim = dims[0]
        self.output_dim = sum(part.output_dim for part in self.maps)

    def __call__(self, z: ArrayLike) -> Any:
        points, restore = to_points(z, "z", self.latent_dim)
        return restore(torch.cat([part(points).to(points.device) for part in self.maps], dim=1))

    def jvp(self, z: ArrayLike, v: ArrayLike) -> tuple[Any, Any]:
        points, restore = to_points(z, "z", self.latent_dim)
        tangents, _ = to_points(v, "v", self.latent_dim)
        values, pushed = zip(*(part.jvp(points, tangents) for part in self.maps), strict=True)
        return restore(torch.cat(values, dim=1)), restore(torch.cat(pushed, dim=1))

    def vjp(self, z: ArrayLike, u: ArrayLike) -> tuple[Any, Any]:
        points, restore = to_points(z, "z", self.latent_dim)
        cotangents, _ = to_points(u, "u", self.output_dim)
        blocks = cotangents.split([part.output_dim for part in self.maps], dim=1)
        pairs = [part.vjp(points, block) for part, block in zip(self.maps, blocks, strict=True)]
        pulled = torch.stack([pull for _, pull in pairs]).sum(0)
        return restore(torch.cat([value for value, _ in pairs], dim=1)), restore(pulled)

    def in_float64(self) -> StackedMap | None:
        """With those maps in float64 that are not yet; ``None`` where there is none."""
        found = [in_float64(part) for part in self.maps]
        if all(part is None for part in found):
            return None
        return StackedMap([old if new is None else new for old, new in zip(self.maps, found, strict=True)])

    @property
    def pull_rows(self) -> int:
        """See :func:`pull_rows`; of those maps that save anything."""
        return min((rows for rows in map(pull_rows, self.maps) if rows), default=0)

    def value_and_pull(self, z: ArrayLike) -> tuple[Any, Callable[[ArrayLike], Any]]:
        points, restore = to_points(z, "z", self.latent_dim)
        pairs = [value_and_pull(part, points) for part in self.maps]

        def pull(u: ArrayLike) -> Any:
            cotangents, _ = to_points(u, "u", self.output_dim)
            blocks = cotangents.split([part.output_dim for part in self.maps], dim=1)
            return restore(torch.stack([back(block) for (_, back), block in zip(pairs, blocks, strict=True)]).sum(0))

        return restore(torch.cat([value for value, _ in pairs], dim=1)), pull

    def value_and_jacobian(self, z: ArrayLike) -> tuple[Any, Any]:
        points, restore = to_points(z, "z", self.latent_dim)
        values, jacobians = zip(*(part.value_and_jacobian(points) for part in self.maps), strict=True)
        return restore(torch.cat(values, dim=1)), restore(torch.cat(jacobians, dim=1))
