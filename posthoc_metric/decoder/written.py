"""What derivatives leave behind in a model: tensors that its forward writes to attributes, as older weight norm does,
or to lists and dictionaries there, as those do that keep activations.

Under automatic differentiation these have a graph, or are stand-ins of ``torch.func`` that live no longer than the
call, and nothing that holds them can be copied or pickled afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: of so many numbers of a weight, training changes one
_FEW = 16
#: what every module has
_TORCHS = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Written:
    """An attribute or buffer of a module that calls write to, and a tensor or what holds some that is left there."""

    module: nn.Module
    name: str
    value: Any

    def changed(self) -> bool:
        now, before = _parts(self._holder().get(self.name)), _parts(self.value)
        return now.keys() != before.keys() or any(now[place] is not before[place] for place in now)

    def put_back(self) -> None:
        held = self._holder().get(self.name)
        # others may hold the same list or dictionary
        if isinstance(self.value, list) and isinstance(held, list):
            held[:] = self.value
        elif isinstance(self.value, dict) and isinstance(held, dict):
            for place in held.keys() - self.value.keys():
                del held[place]
            held.update(self.value)
        else:
            self._holder()[self.name] = _apart(self.value)

    def _holder(self) -> dict[str, Any]:
        buffers = _buffers(self.module)
        return buffers if self.name in buffers else vars(self.module)


def written(
    roots: tuple[nn.Module, ...], plain: Callable[[], Any], derivatives: Callable[[], Any]
) -> tuple[Written, ...]:
    """What ``derivatives`` change of the tensors in ``roots``; as ``plain``, a call without a graph, leaves them."""
    plain()
    before = list(kept(roots))
    derivatives()
    left = tuple(one for one in before if one.changed())
    for one in left:
        one.put_back()
    return left


def modules_of(roots: tuple[nn.Module, ...]) -> list[nn.Module]:
    """Every module below ``roots``, once."""
    return list({id(module): module for root in roots for module in root.modules()}.values())


def weights_alike(roots: tuple[nn.Module, ...], twins: tuple[nn.Module, ...]) -> bool:
    """Whether copies of ``roots``, in another precision, still have the same weights, by a few of each."""
    for root, twin in zip(roots, twins, strict=True):
        for weight, copied in zip(root.parameters(), twin.parameters(), strict=True):
            few, same = weight.detach().reshape(-1)[:_FEW], copied.detach().reshape(-1)[:_FEW]
            if not weight.is_meta and not torch.allclose(few.to(same), same, rtol=0.0, atol=0.0, equal_nan=True):
                return False
    return True


def without_graphs(roots: tuple[nn.Module, ...]) -> dict[int, Any]:
    """A memo with which ``copy.deepcopy`` takes what modules have written to themselves while gradients were recorded.

    Tensors that older weight norm keeps beside its parameters have a graph, and copy only without it.
    """
    return {
        id(value): value.detach().clone()
        for module in modules_of(roots)
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


def kept(roots: tuple[nn.Module, ...]) -> Iterator[Written]:
    """Tensors that modules hold beside their parameters, and lists, tuples and dictionaries of such."""
    for module in modules_of(roots):
        own = ((name, value) for name, value in vars(module).items() if name not in _TORCHS)
        for name, value in (*own, *_buffers(module).items()):
            if any(isinstance(part, Tensor) for part in _parts(value).values()):
                yield Written(module, name, _apart(value))


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return dict(value)
    return dict(enumerate(value if isinstance(value, (list, tuple)) else (value,)))


def _apart(value: Any) -> Any:
    """What others do not write to."""
    return copy.copy(value) if isinstance(value, (list, dict)) else value


def _buffers(module: nn.Module) -> dict[str, Any]:
    found = vars(module).get("_buffers")
    # those of TorchScript are its own
    return found if isinstance(found, dict) else {}
