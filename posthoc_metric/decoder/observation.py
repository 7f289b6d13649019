"""Raw observations in the coordinates of a decoder's output: counts beside ``2 √rate``, classes beside ``2 √p``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from .._arrays import as_tensor, describe
from ..errors import DecoderError, InvalidArgumentError
from .families import ADDED, FAMILIES
from .fisher_rao import family_of

_CLASSES_FIRST = " The axis of classes seems to come first: move it to the end, as by numpy.moveaxis({}, 1, -1)."
_INSTEAD = (
    "Data are brought into the coordinates of fisher_rao by themselves. If they are in these coordinates already, or "
    "are something else, wrap the decoder with observe=, a function of rows of data that gives coordinates, such as "
    "`observe=lambda x: x`."
)


class Observer(Protocol):
    """Brings rows of raw data into the coordinates of a decoder's output; as a string, how it does."""

    def check(self, shape: tuple[int, ...], name: str = "data") -> None:
        """Raise where rows of this shape cannot be brought there; ``name`` is what the caller's argument is called."""

    def __call__(self, data: Tensor, rows: Tensor, name: str = "data") -> Tensor:
        """Floating-point data (n, ...) as coordinates (n, D); ``rows`` (n,) are their names in messages."""


def observer_of(decoder: Any) -> Observer | None:
    """What brings data to the output of a smooth map; ``None`` where they are compared as they are."""
    found: Observer | None = getattr(decoder, "observer", None)
    return found


def means(decoder: Any, outputs: Tensor) -> Tensor:
    """Outputs (n, D) of a smooth map, or the means of the distributions of which they are coordinates."""
    observed = observation_of(decoder)
    return outputs if observed is None else observed.mean(outputs)


def observation_of(decoder: Any) -> Observation | None:
    """How observations of what a smooth map decodes would come to its output, if it gives coordinates."""
    observer = observer_of(decoder)
    if isinstance(observer, Given):
        observer = observer.instead_of
    return observer if isinstance(observer, Observation) else None


@dataclass(frozen=True)
class Observation:
    """Observations of a distribution: each stands where the distribution does whose mean it is.

    Attributes:
        family: of which :func:`~posthoc_metric.fisher_rao` takes coordinates.
        shape: of one row of coordinates, with an axis of classes last where there are classes.
        constant: dispersions, numbers of trials or concentrations, of that shape.
    """

    family: str
    shape: tuple[int, ...]
    constant: Tensor

    def __str__(self) -> str:
        return f"data are observations of {self.family} distributions: {FAMILIES[self.family].words}"

    def check(self, shape: tuple[int, ...], name: str = "data") -> None:
        """Raise where rows of this shape are no observations.

        Raises:
            InvalidArgumentError: they are not.
        """
        width, outputs = math.prod(shape), math.prod(self.shape)
        if width == outputs or self._numbered(width):
            return
        others = f", or {outputs // self.shape[-1]} of class numbers" if self.family == "Categorical" else ""
        raise InvalidArgumentError(
            f"`{name}` must have {outputs} values a row, as the decoder's output{others}; got {width}. They must be "
            f"{FAMILIES[self.family].words}."
        )

    def __call__(self, data: Tensor, rows: Tensor, name: str = "data") -> Tensor:
        """Floating-point data (n, ...) as coordinates (n, D); ``rows`` (n,) are their names in messages.

        Raises:
            InvalidArgumentError: they are no observations of this distribution.
        """
        # half precision holds neither large counts' coordinates nor large dispersions
        data = data.to(torch.promote_types(data.dtype, torch.float32))
        family, c = FAMILIES[self.family], self.constant.to(data)
        if self._numbered(math.prod(data.shape[1:])):
            numbers, classes = data.reshape(len(data), *self.shape[:-1]), self.shape[-1]
            known = (numbers >= 0) & (numbers < classes) & (numbers == numbers.round())
            self._refuse(name, numbers, known, rows, f" below {classes}")
            x = torch.nn.functional.one_hot(numbers.long(), classes).to(data)
        else:
            x = data.reshape(len(data), *self.shape)
            first = tuple(data.shape[1:]) == (self.shape[-1], *self.shape[:-1]) != self.shape
            hint = _CLASSES_FIRST.format(name) if first and len(self.shape) > 1 else ""
            self._refuse(name, x, family.allowed(x, c), rows, hint=hint)
        return family.coordinates(x, c).flatten(1)

    def mean(self, coordinates: Tensor) -> Tensor:
        """Means (n, D) of the distributions at coordinates (n, D)."""
        c = self.constant.to(coordinates)
        return FAMILIES[self.family].mean(coordinates.reshape(-1, *self.shape), c).flatten(1)

    def _numbered(self, width: int) -> bool:
        """Whether rows of so many values are the numbers of classes."""
        return self.family == "Categorical" and width == math.prod(self.shape[:-1]) and self.shape[-1] > 1

    def _refuse(self, name: str, x: Tensor, allowed: Tensor, rows: Tensor, more: str = "", hint: str = "") -> None:
        bad = ~allowed.reshape(len(x), math.prod(allowed.shape[1:]))
        if not bool(bad.any()):
            return
        row = int(bad.any(1).nonzero()[0])
        index = int(bad[row].nonzero()[0])
        value = float(x[row].flatten()[index])
        first = f"for its {value:.6g}"
        if not more and self.family in ADDED and value >= 0:
            total = float(x[row].reshape(-1, self.shape[-1])[index // self.shape[-1]].sum())
            first = f"for what adds up to {total:.6g}"
        words = FAMILIES[self.family].words
        if more:
            words = f"class numbers from 0{more}"
        raise InvalidArgumentError(
            f"`{name}` must be observations of the {self.family} distributions that the decoder gives: {words}; row "
            f"{int(rows[row])} and {int(bad.any(1).sum()) - 1} others of {len(x)} looked at are not, the first {first}."
            f"{hint} {_INSTEAD}{FAMILIES[self.family].means}"
        )


@dataclass(frozen=True)
class Given:
    """A caller's own function of rows of data, which gives coordinates.

    Attributes:
        function: (n, ...) -> (n, D), or (n, ...) that is flattened to it.
        width: D.
        instead_of: what would bring data there without it, if anything.
    """

    function: Callable[[Tensor], Tensor]
    width: int
    instead_of: Observer | None = None

    def __str__(self) -> str:
        return "data go through the function given as observe="

    def check(self, shape: tuple[int, ...], name: str = "data") -> None:
        """What it takes, the function says itself."""

    def __call__(self, data: Tensor, rows: Tensor, name: str = "data") -> Tensor:
        """See :class:`Observer`.

        Raises:
            InvalidArgumentError: the function gives something else.
        """
        found = self.function(data)
        shape = tuple(found.shape) if isinstance(found, Tensor) and found.layout == torch.strided else None
        if shape is None or shape[:1] != (len(data),) or math.prod(shape[1:]) != self.width:
            raise InvalidArgumentError(
                f"`observe` must give a dense tensor of {self.width} values a row, as the decoder's output; of data of "
                f"shape {tuple(data.shape)} it gives {describe(found)}. Write it with torch's own functions."
            )
        if found.is_complex() or found.is_meta:
            where = " on the meta device" if found.is_meta else ""
            raise InvalidArgumentError(
                f"`observe` must give real numbers; it gives {describe(found)}{where}. Give such as are of use beside "
                "the decoder's output."
            )
        found = found.detach().reshape(len(data), self.width)
        found = found.to(data.device, torch.promote_types(found.dtype, data.dtype))
        finite = torch.isfinite(found).all(dim=1)
        if not bool(finite.all()):
            raise InvalidArgumentError(
                f"`observe` must give finite numbers; it does not for row {int(rows[~finite.cpu()][0])} of the data."
            )
        return found


@dataclass(frozen=True)
class Unclear:
    """Stands for an output that is made of coordinates, but is not what ``fisher_rao`` gives by itself."""

    def __str__(self) -> str:
        return "data cannot be compared with this output, which is made of what fisher_rao gives, but through observe="

    def check(self, shape: tuple[int, ...], name: str = "data") -> None:
        """Raise, whatever the data are.

        Raises:
            DecoderError: always.
        """
        raise DecoderError(
            f"`{name}` cannot be compared with this decoder's output: it is made of what fisher_rao gives, but is not "
            "that by itself. Do without, or wrap the decoder with observe=, a function of rows of data that gives them "
            "in the output's coordinates, such as `observe=lambda x: x` where they are in these already."
        )

    def __call__(self, data: Tensor, rows: Tensor, name: str = "data") -> Tensor:
        self.check(tuple(data.shape[1:]), name)
        return data


def observation(calls: list[tuple[Distribution, Tensor]], output: Tensor) -> Observer | None:
    """What brings data to an output (n, ...), by the calls of ``fisher_rao`` while it was made."""
    flat = output.reshape(len(output), -1)  # a number a row has no axis of its own
    for distribution, coordinates in reversed(calls):
        # a model of fixed batches is called with more rows than are wanted, or with one after another
        rows = min(coordinates.shape[0], len(flat)) if coordinates.ndim else 0
        if rows and torch.equal(coordinates[:rows].reshape(rows, -1), flat[-rows:].to(coordinates)):
            family = family_of(distribution)
            constant = as_tensor(FAMILIES[family].constant(distribution)).detach().double()
            if family == "Multinomial":
                constant = constant.unsqueeze(-1)
            constant = constant.to(coordinates.device).expand(coordinates.shape)[0].clone()
            return Observation(family, tuple(coordinates.shape[1:]), constant)
    return Unclear() if calls else None
