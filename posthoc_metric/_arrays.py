"""The boundary between a caller's arrays and the library's tensors.

Inside, everything is a ``torch.Tensor``.  What comes in decides dtype, device and kind
(NumPy or torch) of what goes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeGuard, Union

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.utils.data import DataLoader, Dataset

from .errors import InvalidArgumentError

# parameters are said, or a strict type checker finds every call of the library partly unknown
ArrayLike = Union[torch.Tensor, np.ndarray, list[Any], tuple[Any, ...]]
Restore = Callable[[torch.Tensor], Any]
#: dtypes that arithmetic is possible in
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_REAL = (*_FLOATS, *(getattr(torch, f"{u}int{n}") for u in ("", "u") for n in (8, 16, 32, 64)))


def describe(value: Any) -> str:
    """What came, in a few words, for an error message."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        if getattr(value, "is_nested", False):
            return "nested tensor"
        return f"{kind} of shape {tuple(value.shape)} and dtype {value.dtype}"
    if is_sparse(value):
        return f"sparse {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"{type(value).__name__} ({' '.join(repr(value).split()):.60})"


def is_sparse(value: Any) -> bool:
    """Whether ``value`` is a sparse table of SciPy's, whose kinds all have these."""
    return hasattr(value, "toarray") and hasattr(value, "tocsr")


def as_tensor(value: Any) -> torch.Tensor:
    """``value`` as a tensor where it is; torch's own function moves it to the device that the caller made default."""
    if isinstance(value, torch.Tensor):
        return value
    array = np.asarray(value)
    # what may not be written to belongs to others, and a tensor says nothing of that
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_tensor(value: ArrayLike, name: str) -> tuple[torch.Tensor, Restore]:
    """``value`` as a floating-point tensor that shares no gradient with the caller's, and the way back.

    Raises:
        InvalidArgumentError: ``value`` is no dense real-valued array.
    """
    if isinstance(value, torch.Tensor):
        refuse_tensor(value, name)
        tensor = _ordinary(value) if value.is_inference() else value.detach()
        restore: Restore = partial(_to_device, device=value.device)
    else:
        tensor = torch.from_numpy(native(value, name))
        restore = _to_numpy
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    return tensor, restore


def _ordinary(value: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor that was made in inference mode: what is made of it may be differentiated later."""
    with torch.inference_mode(False):
        return value.clone()


def _to_device(out: torch.Tensor, device: torch.device) -> torch.Tensor:
    return out.to(device)


def _to_numpy(out: torch.Tensor) -> np.ndarray:
    return out.detach().cpu().numpy()


def refuse_tensor(value: torch.Tensor, name: str, *, booleans: bool = False) -> None:
    """Raise where a tensor is not dense, or holds no real numbers; ``booleans`` may pass for such.

    Raises:
        InvalidArgumentError: it is one of these.
    """
    if value.layout != torch.strided or value.is_nested:
        raise InvalidArgumentError(f"`{name}` must be a dense tensor; got {describe(value)}, {_layout(value)}.")
    if value.device.type == "meta":
        raise InvalidArgumentError(f"`{name}` must hold numbers; got a tensor on the meta device, which holds none.")
    if forward_ad.unpack_dual(value).tangent is not None:
        raise InvalidArgumentError(
            f"`{name}` must carry no tangent of forward-mode differentiation, which would be lost; got "
            f"{describe(value)} with one. Differentiate in reverse: torch.autograd.grad of a tensor that requires grad."
        )
    if value.dtype not in _REAL and not (booleans and value.dtype == torch.bool):
        raise InvalidArgumentError(f"`{name}` must hold real numbers; got {describe(value)}. {_remedy(value.dtype)}")


def refuse_transformed(value: Any, name: str) -> None:
    """Raise where ``value`` is inside a transform of ``torch.func``, which decoders and solvers do not pass through.

    Raises:
        InvalidArgumentError: it is.
    """
    if isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise InvalidArgumentError(
            f"`{name}` must be a tensor outside of torch.func (grad, jacrev, jvp, vmap); got one inside. Use "
            "torch.autograd.grad of a tensor that requires grad, with a whole batch at once."
        )


def _layout(value: torch.Tensor) -> str:
    if value.is_nested:
        return "whose rows may differ in length. Pad or concatenate them"
    return f"{str(value.layout).removeprefix('torch.')}. Call .to_dense() first"


def _remedy(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "Pass a float array, such as the real and imaginary parts beside one another."
    return "Convert it with .float() first." if dtype.is_floating_point else "Pass a float array."


def native(value: Any, name: str, *, booleans: bool = False) -> np.ndarray:
    """``value`` as a writeable array that torch takes: native byte order, no negative strides, double at most.

    ``booleans`` may pass for real numbers.

    Raises:
        InvalidArgumentError: ``value`` holds no real numbers, or does not hold one for each place.
    """
    wanted = f"`{name}` must be a tensor, a NumPy array or nested lists of numbers; got {describe(value)}."
    # rows of an annotated table's view are dense arrays, although they have that method
    if hasattr(value, "toarray") and not isinstance(value, np.ndarray):
        raise InvalidArgumentError(f"{wanted} Call .toarray() first: sparse matrices are not taken here.")
    if hasattr(value, "obsm"):
        raise InvalidArgumentError(f"{wanted} Give one of its arrays, such as {name}.obsm[key].")
    if hasattr(value, "to_memory"):
        raise InvalidArgumentError(f"{wanted} Call .to_memory() first: it lies in a file still.")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        # NumPy takes no tensors that require grad or lie on another device, whatever their lengths
        way = f"torch.stack({name})" if _holds_tensors(value) else "numpy.asarray"
        advice = _joined(value, name) or f"Its rows must have one length: convert it with {way}"
        raise InvalidArgumentError(f"{wanted} {advice}.") from None
    if isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any()):
        raise InvalidArgumentError(f"`{name}` must be whole; got a masked array. Fill or leave out what is masked.")
    if array.dtype.kind == "c" or (array.dtype.kind == "b" and not booleans):
        raise InvalidArgumentError(f"`{name}` must hold real numbers; got {describe(value)}. Pass a float array.")
    if array.dtype.kind not in "fiub":
        advice = _joined(value, name) or "Convert it with numpy.asarray(..., dtype=float) first"
        raise InvalidArgumentError(f"{wanted} {advice}.")
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    usable = array.flags.writeable and array.dtype.isnative and array.ndim > 0 and min(array.strides) >= 0
    return array if usable else np.array(array, dtype=array.dtype.newbyteorder("="), copy=True, order="C")


def _joined(value: Any, name: str) -> str:
    """What makes one array of batches or of a data set; nothing where ``value`` is neither."""
    if isinstance(value, (Dataset, DataLoader, Iterator)):
        return "Collect what it gives in one array first: torch.cat of batches, torch.stack of rows"
    batches = isinstance(value, (list, tuple)) and bool(value) and all(getattr(item, "ndim", 0) == 2 for item in value)
    if not batches:
        return ""
    return f"Join its batches first: {'torch.cat' if _holds_tensors(value) else 'numpy.concatenate'}({name})"


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value)


def to_points(
    value: ArrayLike, name: str, dim: int | None = None, what: str = "latent dimension", source: str = ""
) -> tuple[torch.Tensor, Restore]:
    """A batch of finite points ``(B, d)`` and the way back.

    Args:
        what: the name of d, for messages.
        source: what a decoder's d was inferred from, if it was.

    Raises:
        InvalidArgumentError: wrong rank or width, or rows that are not finite (which are named).
    """
    tensor, restore = to_tensor(value, name)
    width = "d" if dim is None else str(dim)
    if tensor.ndim != 2:
        raise InvalidArgumentError(
            f"`{name}` must have shape (B, {width}); got {describe(value)}. "
            f"{_joined(value, name) or _reshaped(tensor, name, dim)}."
        )
    if dim is not None and tensor.shape[1] != dim:
        advice = "Check that the points are latents of this decoder and not data, and not transposed."
        if source:
            advice += (
                f" The decoder's {dim} was inferred from its {source}: if it is wrong, wrap the model again with "
                f"latent_dim={tensor.shape[1]} (and method=, the part that takes such latents)."
            )
        raise InvalidArgumentError(
            f"`{name}` must have {dim} columns, the {what}; got {describe(value)}. "
            f"{advice if what == 'latent dimension' else 'Check that it is not transposed.'}"
        )
    bad = bad_rows(tensor)
    if bad is not None:
        raise InvalidArgumentError(
            f"`{name}` must be finite; {name_rows(bad)} NaN or infinite. Remove those rows first."
        )
    return tensor, restore


def _reshaped(tensor: torch.Tensor, name: str, dim: int | None) -> str:
    """How an array that is no batch of points becomes one."""
    if tensor.ndim > 2:
        return "Flatten other axes"
    if tensor.ndim == 1 and dim == 1:
        return f"Points of one coordinate need an axis for it: `{name}[:, None]`"
    if tensor.ndim == 1 and dim in (None, len(tensor)):
        return f"A single point needs a batch axis: `{name}[None]`"
    return "Pass an array of points, one a row"


def bad_rows(values: torch.Tensor) -> torch.Tensor | None:
    """Which rows (B,) of ``values`` (B, ...) are NaN or infinite; ``None`` where none is."""
    # one reduction clears nearly every batch; only a suspicious sum is looked at row by row
    if math.isfinite(float(values.sum())):
        return None
    bad = ~torch.isfinite(values).flatten(1).all(dim=1)
    return bad if bool(bad.any()) else None


def listed(rows: Sequence[int], most: int = 5) -> str:
    """``row 3``, ``rows 3, 7, 12`` or ``rows 0, 1, 2, 3, 4 and 95 more``."""
    shown = ", ".join(str(row) for row in rows[:most])
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def name_rows(mask: torch.Tensor) -> str:
    """``row 3 is`` or ``rows 0, 1, 2, 3, 4 and 95 more are``."""
    rows = torch.nonzero(mask).flatten().tolist()
    return f"{listed(rows)} {'are' if len(rows) > 1 else 'is'}"


def check_range(value: Any, name: str, low: float, high: float, what: str) -> float:
    """``value`` as a float strictly inside ``(low, high)``.

    Raises:
        InvalidArgumentError: anything else.
    """
    try:
        # float reads text too, and a number in quotes is a mistake that should not pass for its number
        number = float("nan") if isinstance(value, (bool, np.bool_, str, bytes, bytearray)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not low < number < high:
        raise InvalidArgumentError(f"`{name}` is {what} and must lie in ({low:g}, {high:g}); got {describe(value)}.")
    return number


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is one whole number, of Python's or NumPy's, and no truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_seed(value: Any) -> int:
    """``value`` as a seed that torch, NumPy and scikit-learn all take.

    Raises:
        InvalidArgumentError: anything else.
    """
    if not is_integer(value) or not 0 <= value < 2**32:
        raise InvalidArgumentError(f"`seed` must be an integer from 0 to 2**32 - 1; got {describe(value)}.")
    return int(value)


def check_count(value: Any, name: str, low: int, what: str) -> int:
    """``value`` as an integer of at least ``low``.

    Raises:
        InvalidArgumentError: anything else.
    """
    if not is_integer(value) or value < low:
        raise InvalidArgumentError(
            f"`{name}` is {what} and must be an integer of at least {low}; got {describe(value)}."
        )
    return int(value)
