"""Labels as a caller has them, made soft labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._arrays import describe, listed
from .errors import InvalidArgumentError

_WHOLE = "Convert one-hot labels to float, which makes them soft; flatten a column of class indices to (N,)."


def soft_labels(labels: Any, classes: int | None, name: str) -> Tensor:
    """Classes (N,) or soft labels (N, C) as soft labels (N, C) float32; ``name`` is the argument's, for messages."""
    values = _label_numbers(labels, name)
    if values.ndim == 2 and values.is_floating_point():
        if classes is not None and values.shape[1] != classes:
            raise InvalidArgumentError(f"`{name}`, being soft, must have {classes} columns; got {describe(labels)}.")
        # a comparison with NaN is false
        bad = (~((values >= 0) & (values < float("inf"))).all(1)).nonzero().flatten().tolist()
        if bad:
            raise InvalidArgumentError(
                f"`{name}`, being soft, must be finite and not negative; {listed(bad)} are not. "
                "Pass probabilities, as softmax gives, not logits."
            )
        return values.float()
    # without labels nothing says how many classes there are
    if values.ndim == 2:
        raise InvalidArgumentError(f"{_wanted(labels, name)} {_WHOLE}")
    if values.ndim != 1 or values.is_floating_point() or (classes is None and not len(values)):
        raise InvalidArgumentError(_wanted(labels, name))
    values = values.long()
    lowest, highest = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    count = highest + 1 if classes is None else classes
    if lowest < 0 or highest >= count:
        raise InvalidArgumentError(
            f"`{name}` must be class indices from 0 to {max(count - 1, 0)}; got {lowest} to {highest}. "
            "Pass `num_classes` if there are more."
        )
    return torch.nn.functional.one_hot(values, count).float()


def _label_numbers(labels: Any, name: str) -> Tensor:
    """Integers or floats of any shape, as a tensor."""
    if isinstance(labels, Tensor):
        values = labels.detach()
        sparse = values.layout is not torch.strided or values.is_nested
        if sparse or values.is_complex() or values.dtype == torch.bool:
            advice = f" {_WHOLE}" if values.dtype == torch.bool and not sparse and values.ndim == 2 else ""
            raise InvalidArgumentError(f"{_wanted(labels, name)}{advice}")
        return values
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidArgumentError(f"{_wanted(labels, name)} All rows must have one length.") from None
    if array.dtype.kind not in "fiu":
        names = "Names become indices with sklearn.preprocessing.LabelEncoder."
        advice = _WHOLE if array.dtype.kind == "b" and array.ndim == 2 else names
        raise InvalidArgumentError(f"{_wanted(labels, name)} {advice}")
    # a copy in native order and of positive strides, as torch takes none of another
    return torch.from_numpy(np.array(array, dtype=np.float64 if array.dtype.kind == "f" else np.int64))


def _wanted(labels: Any, name: str) -> str:
    return f"`{name}` must be class indices (N,), integers from 0, or soft labels (N, C); got {describe(labels)}."
