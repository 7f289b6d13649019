"""A device that is none: its tensors compute on the CPU but refuse to meet tensors of the CPU.

For machines without a GPU, as a pytest plugin: ``python -m pytest -p pretended tests/test_devices.py -k pretend`` runs
the contract of devices on it.  It finds tensors made where the decoder is not, and says nothing of a GPU's arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretend"
aten = torch.ops.aten
backend_registration._setup_privateuseone_for_python_backend(NAME)
_DEVICE = torch.device(NAME, 0)
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_MOVING = {aten._to_copy.default, aten.copy_.default, aten.copy.default}


class Pretended(torch.Tensor):
    """Claims the device, and holds what it computes with."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        found = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_DEVICE,
        )
        found.held = held
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def new_tensor(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return Pretended(self.held.new_tensor(*args, **kwargs))

    def __matmul__(self, other: Any) -> Any:
        # torch would take an axis of the product away in place, of which the claim would not know
        return (other.mT @ self[:, None])[..., 0] if self.ndim == 1 < other.ndim else super().__matmul__(other)

    def tolist(self) -> Any:
        return self.held.tolist()

    def __deepcopy__(self, memo: Any) -> Pretended:
        return Pretended(self.held.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Pretended, (self.held,)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    here = [value for value in tensors if isinstance(value, Pretended)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    # indices may be on the CPU, and so may numbers without an axis; nothing else may
    meeting = [args[0], *args[2:3]] if func in _INDEXING else [] if func in _MOVING else tensors
    mixed = [isinstance(value, Pretended) for value in meeting if isinstance(value, torch.Tensor) and value.ndim]
    if any(mixed) and not all(mixed):
        raise RuntimeError(f"Expected all tensors to be on the same device, in {func}")
    if func in _INDEXING and not isinstance(args[0], Pretended) and here:
        raise RuntimeError(f"indices should be on the CPU, in {func}")
    if target is not None and target.type == NAME:
        kwargs = {**kwargs, "device": "cpu"}
    if func is aten.copy_.default and _held(args[0]).data_ptr() == _held(args[1]).data_ptr():
        return args[0]  # a view that was written into, put back where it came from
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func is aten.copy_.default:
        return args[0]
    own = {id(value.held): value for value in here}
    claimed = bool(here) if target is None else target.type == NAME
    if func in _INDEXING:
        claimed = isinstance(args[0], Pretended)

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in own:
            return own[id(value)]
        return Pretended(value) if claimed else value

    return tree_map(wrap, found)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _empty(size: Any, stride: Any = None, *, dtype: Any = None, **_: Any) -> Pretended:
    return Pretended(
        torch.empty(size, dtype=dtype) if stride is None else torch.empty_strided(size, stride, dtype=dtype)
    )


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _held(target).copy_(_held(source))
    return target


_LIBRARY = torch.library.Library("aten", "IMPL")
for _name, _function in {"empty_strided": _empty, "empty.memory_format": _empty, "_copy_from": _copy_from}.items():
    _LIBRARY.impl(_name, _function, "PrivateUse1")


@pytest.fixture(autouse=True)
def _on_the_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if NAME not in request.node.callspec.params.values():
        yield
        return
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        found = make(_held(data), **options)
        return found if device is None else found.to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    with _Mode():
        yield
