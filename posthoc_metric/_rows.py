"""Rows of a caller's data, which may exceed memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ._arrays import as_tensor, describe, is_sparse, listed, native, refuse_tensor
from .errors import InvalidArgumentError


def some_rows(count: int, most: int, seed: int) -> torch.Tensor:
    """At most ``most`` of ``count`` rows, drawn without replacement, in ascending order."""
    if count <= most:
        return torch.arange(count, device="cpu")
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")[:most].sort().values


class Rows:
    """Rows of a data array, read when asked for: a memory-mapped file never enters memory whole, nor a sparse table.

    Args:
        data: (N, ...) tensor, array or memory map; trailing axes are flattened.  Or a sparse table (N, D) of SciPy's.
        order: which rows, in which order; all by default.
        observe: what a block of rows (n, ...) becomes, (n, width), given what these are called in messages (n,).
        width: of rows that went through ``observe``.

    Raises:
        InvalidArgumentError: it is no array and no table of real numbers; once rows are read, one of them is not
            finite.
    """

    def __init__(
        self,
        data: Any,
        order: torch.Tensor | None = None,
        *,
        observe: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        width: int = 0,
    ):
        if is_sparse(data):
            if data.dtype.kind not in "fiub" or data.ndim != 2:
                raise InvalidArgumentError(
                    f"`data` must be a table (N, D) of real numbers; got {describe(data)}. Pass one of floats."
                )
            data = data.tocsr()
        elif not isinstance(data, (torch.Tensor, np.ndarray)) or isinstance(data, np.ma.MaskedArray):
            data = native(data, "data", booleans=True)
        elif isinstance(data, torch.Tensor):
            refuse_tensor(data, "data", booleans=True)
        elif data.dtype.kind not in "fiub":
            raise InvalidArgumentError(f"`data` must hold real numbers; got {describe(data)}. Pass a float array.")
        if data.ndim == 0:
            raise InvalidArgumentError(f"`data` must have shape (N, D) or (N, ...); got {describe(data)}.")
        self._data = data
        self._order = torch.arange(data.shape[0], device="cpu") if order is None else order.cpu()
        self._observe = observe
        self.raw_shape = tuple(data.shape[1:])
        self.shape = (len(self._order), width if observe is not None else math.prod(self.raw_shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """Rows (n, D) as floating point; ``rows`` is a slice, or indices or a mask (n,)."""
        chosen = self._order[rows if isinstance(rows, slice) else as_tensor(rows).cpu()]
        if isinstance(self._data, torch.Tensor):
            found = self._data[chosen.to(self._data.device)].detach()
        else:
            # a memory map is read fastest in the order of the file
            ascending = torch.argsort(chosen)
            found = torch.empty(len(chosen), *self._data.shape[1:], dtype=torch.float64, device="cpu")
            block = self._data[chosen[ascending].numpy()]
            block = block.toarray() if is_sparse(block) else block
            found[ascending] = torch.from_numpy(np.asarray(block, dtype=np.float64))
        if not found.is_floating_point():
            found = found.double()
        flat = found.reshape(len(found), math.prod(self.raw_shape))
        finite = torch.isfinite(flat).all(dim=1)
        if not bool(finite.all()):
            bad = sorted(chosen[~finite.cpu()].tolist())
            are = "are" if len(bad) > 1 else "is"
            raise InvalidArgumentError(
                f"`data` must be finite; of the rows read so far, {listed(bad)} {are} NaN or infinite. "
                "Remove them, and their latents."
            )
        return flat if self._observe is None else self._observe(found, chosen)

    def subset(self, order: torch.Tensor) -> Rows:
        """The rows ``order`` of these rows, still unread."""
        return Rows(self._data, self._order[order.cpu()], observe=self._observe, width=self.shape[1])
