"""The boundary between a caller's arrays and the library's tensors.

Inside, everything is a ``torch.Tensor``.  What comes in decides dtype, device and kind
(NumPy or torch) of what goes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

import numpy as np
import torch

from .errors import InvalidArgumentError

ArrayLike = Union[torch.Tensor, np.ndarray, list, tuple]
Restore = Callable[[torch.Tensor], Any]


def describe(value: Any) -> str:
    """What came, in a few words, for an error message."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return f"{kind} of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"{type(value).__name__} ({value!r:.60})"


def to_tensor(value: ArrayLike, name: str) -> tuple[torch.Tensor, Restore]:
    """``value`` as a floating-point tensor that shares no gradient with the caller's, and the way back.

    Raises:
        InvalidArgumentError: ``value`` is no real-valued array.
    """
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        restore: Restore = lambda out: out  # noqa: E731
    else:
        try:
            array = np.asarray(value)
            tensor = torch.from_numpy(np.array(array, copy=not array.flags.writeable or array.ndim == 0))
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"`{name}` must be a tensor, a NumPy array or nested lists of numbers; got {describe(value)}. "
                f"Convert it with numpy.asarray first ({error})."
            ) from None
        restore = lambda out: out.detach().cpu().numpy()  # noqa: E731
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise InvalidArgumentError(f"`{name}` must hold real numbers; got {describe(value)}. Pass a float array.")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    return tensor, restore


def to_points(value: ArrayLike, name: str, dim: int | None = None) -> tuple[torch.Tensor, Restore]:
    """A batch of finite points ``(B, d)`` and the way back.

    Raises:
        InvalidArgumentError: wrong rank or width, or rows that are not finite (which are named).
    """
    tensor, restore = to_tensor(value, name)
    width = "d" if dim is None else str(dim)
    if tensor.ndim != 2:
        hint = f"a single point needs a batch axis: `{name}[None]`" if tensor.ndim == 1 else "flatten other axes"
        raise InvalidArgumentError(f"`{name}` must have shape (B, {width}); got {describe(value)}. {hint}.")
    if dim is not None and tensor.shape[1] != dim:
        raise InvalidArgumentError(
            f"`{name}` must have {dim} columns, the latent dimension; got {describe(value)}. "
            "Check that the points are latents of this decoder and not data, and not transposed."
        )
    finite = torch.isfinite(tensor).all(dim=1)
    if not bool(finite.all()):
        raise InvalidArgumentError(
            f"`{name}` must be finite; {name_rows(~finite)} NaN or infinite. Remove those rows first."
        )
    return tensor, restore


def name_rows(mask: torch.Tensor, most: int = 5) -> str:
    """``rows 3, 7 and 12 are`` or ``rows 0, 1, 2, 3, 4 and 95 more are``."""
    rows = torch.nonzero(mask).flatten().tolist()
    if len(rows) == 1:
        return f"row {rows[0]} is"
    shown = ", ".join(str(row) for row in rows[:most])
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"rows {shown}{more} are"


def check_range(value: Any, name: str, low: float, high: float, what: str) -> float:
    """``value`` as a float strictly inside ``(low, high)``.

    Raises:
        InvalidArgumentError: anything else.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not low < number < high:
        raise InvalidArgumentError(f"`{name}` is {what} and must lie in ({low:g}, {high:g}); got {describe(value)}.")
    return number


class Rows:
    """Rows of a data array, read when asked for: a memory-mapped file never enters memory whole.

    Args:
        data: (N, ...) tensor, array or memory map; trailing axes are flattened.
        order: which rows, in which order; all by default.
    """

    def __init__(self, data: Any, order: torch.Tensor | None = None):
        if not isinstance(data, (torch.Tensor, np.ndarray)):
            data = np.asarray(data)
        self._data = data
        self._order = torch.arange(len(data)) if order is None else order.cpu()
        self.shape = (len(self._order), int(np.prod(data.shape[1:])))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """Rows (n, D) as floating point; ``rows`` is a slice, or indices or a mask (n,)."""
        chosen = self._order[rows if isinstance(rows, slice) else torch.as_tensor(rows)]
        if isinstance(self._data, torch.Tensor):
            found = self._data[chosen.to(self._data.device)].detach()
        else:
            # a memory map is read fastest in the order of the file
            ascending = torch.argsort(chosen)
            found = torch.empty(len(chosen), *self._data.shape[1:], dtype=torch.float64)
            found[ascending] = torch.from_numpy(np.asarray(self._data[chosen[ascending].numpy()], dtype=np.float64))
        return found.flatten(1) if found.is_floating_point() else found.flatten(1).double()

    def subset(self, order: torch.Tensor) -> Rows:
        """The rows ``order`` of these rows, still unread."""
        return Rows(self._data, self._order[order.cpu()])
