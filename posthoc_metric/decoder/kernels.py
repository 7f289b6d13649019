"""What stands in for kernels whose forward derivative is missing or slow, for the time of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .tangents import DirectTangents


class _ContiguousInputs(TorchFunctionMode):
    """Hands attention and group norm contiguous tensors: their forward derivatives take views of the tangents."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.scaled_dot_product_attention, functional.group_norm):
            # contiguous() would leave a tangent of another layout than its tensor as it is
            copy = torch.contiguous_format
            args = tuple(a.clone(memory_format=copy) if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


class _ExplicitDistances(TorchFunctionMode):
    """Euclidean distances by differences and squares: ``torch.cdist`` has no forward and no second derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        euclidean = len(args) == 2 and options.get("p", 2.0) == 2.0
        if func is torch.cdist and euclidean:
            squares = (args[0].unsqueeze(-2) - args[1].unsqueeze(-3)).square().sum(dim=-1)
            # as torch has it, points that coincide have a distance without a slope, where a root would have infinity
            none = squares == 0
            return squares.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0)
        return func(*args, **options)


class _NoFastPath(TorchFunctionMode):
    """Keeps attention layers from the fused kernels that they take where no graph is kept, and that round otherwise.

    A mode that watches is enough to keep them off, and unlike torch's own switch it is that of one thread.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def _math_attention() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    # what is not None is set, and setting the precision warns where there is no Intel GPU
    with torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None):  # type: ignore[arg-type]
        yield


#: by the name that `describe` gives it
KERNELS: dict[str, Callable[[], Any]] = {
    "direct tangents": DirectTangents,
    "math attention": _math_attention,
    "no mkldnn": _without_mkldnn,
    "contiguous inputs": _ContiguousInputs,
    "explicit distances": _ExplicitDistances,
    "no fast path": _NoFastPath,
}

#: what an error says -> what to replace
_COMPLAINTS = {
    "scaled_dot_product": "math attention",
    "transformer_encoder_layer": "math attention",
    "view size is not compatible": "contiguous inputs",
    "mkldnn": "no mkldnn",
    "cdist": "explicit distances",
    "euclidean_dist": "explicit distances",  # what it is inside where there are many points
}


def remedies(error: Exception) -> list[str]:
    """The kernels to replace according to the words of ``error``."""
    return list(dict.fromkeys(kernel for words, kernel in _COMPLAINTS.items() if words in str(error)))


@contextmanager
def in_force(names: tuple[str, ...]) -> Iterator[None]:
    """Inside, the kernels named in :data:`KERNELS` are in force."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(KERNELS[name]())
        yield
