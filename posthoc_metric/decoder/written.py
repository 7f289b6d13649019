"""What derivatives leave behind in a model: tensors that its forward writes to attributes, as older weight norm does.

Under automatic differentiation these have a graph, or are stand-ins of ``torch.func`` that live no longer than the
call, and nothing that holds them can be copied or pickled afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Written:
    """An attribute or buffer of a module that calls write to, and what a plain call leaves there."""

    module: nn.Module
    name: str
    value: Tensor

    def now(self) -> Any:
        """What is there."""
        return self._holder().get(self.name)

    def put_back(self) -> None:
        self._holder()[self.name] = self.value

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
    left = tuple(one for one in before if one.now() is not one.value)
    for one in left:
        one.put_back()
    return left


def modules_of(roots: tuple[nn.Module, ...]) -> list[nn.Module]:
    """Every module below ``roots``, once."""
    return list({id(module): module for root in roots for module in root.modules()}.values())


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
    """Tensors that modules hold beside their parameters."""
    for module in modules_of(roots):
        for name, value in (*vars(module).items(), *_buffers(module).items()):
            if isinstance(value, Tensor):
                yield Written(module, name, value)


def _buffers(module: nn.Module) -> dict[str, Any]:
    found = vars(module).get("_buffers")
    # those of TorchScript are its own
    return found if isinstance(found, dict) else {}
