"""Whether data are what latents encode, row by row, as far as a decoder's output tells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._rows import Rows
from .decoder.observation import observer_of
from .errors import InvalidArgumentError, PosthocMetricError
from .smooth_map import SmoothMap

#: rows of the data that are compared with the decoder's output, fewer where they would fill memory
_COMPARED, _FEWEST_COMPARED, _ENTRIES = 256, 32, 2**23
#: standard deviations that rows must match better than by chance: orders drawn at random reach two in 1 of 40 cases
#: and four in 1 of 30,000; of few rows four are out of reach, and the share of what rows that match reach is enough
_LEAST_CHANCE, _CHANCE, _OF_MATCHING = 2.0, 4.0, 0.25
#: data so many times larger than the output are on another scale, if their mean is this share of their size at least
_LARGER, _OFF_ZERO = 32.0, 0.3


def data_rows(decoder: SmoothMap, data: Any, count: int) -> Rows:
    """The rows of data, ``count`` of them, in the coordinates of the decoder's output.

    Raises:
        InvalidArgumentError: they are too few or too many, or of another width.
    """
    observer = observer_of(decoder)
    rows = Rows(data, observe=observer, width=decoder.output_dim)
    if len(rows) != count:
        raise InvalidArgumentError(
            f"`data` must have one row for each of the {count} latents; got {len(rows)} rows. "
            "Pass the data that were encoded, in the same order, or no data at all."
        )
    if observer is not None:
        observer.check(rows.raw_shape)
    if rows.shape[1] != decoder.output_dim:
        raise InvalidArgumentError(
            f"`data` must have {decoder.output_dim} values a row, as the decoder's output; got {rows.shape[1]}. "
            "Bring the data into the form that the decoder reconstructs."
        )
    return rows


def check_data(decoder: SmoothMap, data: Any, latents: Tensor) -> tuple[Rows, str]:
    """The data's rows, and a warning where they do not seem to be what ``latents`` encode; empty where they do."""
    rows = data_rows(decoder, data, len(latents))
    if observer_of(decoder) is None and (turned := _turned(rows.raw_shape, getattr(decoder, "output_shape", ()))):
        return rows, turned
    count = min(len(rows), _COMPARED, max(_FEWEST_COMPARED, _ENTRIES // decoder.output_dim))
    some = torch.linspace(0, len(rows) - 1, count, dtype=torch.float64, device="cpu").round().long()
    # what is no observation is refused here, whether or not the model makes use of data
    known = None if observer_of(decoder) is None else rows[some]
    try:
        outputs = decoder(latents[some.to(latents.device)]).cpu().double()
        return rows, _doubt(outputs, (rows[some] if known is None else known).cpu().double())
    except PosthocMetricError:
        return rows, ""  # what is not finite is told of with its rows where it is used


def _turned(given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What to do with rows whose axes are those of the output in another order; empty where they are not."""
    held = [size for size in given if size > 1]
    if held == [size for size in wanted if size > 1] or sorted(given) != sorted(wanted):
        return ""
    left, order = list(range(len(given))), [0]
    for size in wanted:
        axis = next(one for one in left if given[one] == size)
        left.remove(axis)
        order.append(axis + 1)
    return (
        f"`data` have rows of shape {given} and the decoder's output is of shape {wanted}, so that other numbers are "
        f"compared with each other than belong together. Put their axes into its order with {tuple(order)}, by "
        "np.transpose or Tensor.permute."
    )


def _doubt(outputs: Tensor, data: Tensor) -> str:
    """What makes data (n, D) unlikely to be what outputs (n, D) reconstruct; empty where nothing does.

    Logits, rates and other outputs on another scale than their data still go up where those do: rows are compared by
    the angle between their departures from the median row, to which no row's size and no outlier matters. Their sum
    over matching rows is held to its mean and spread over all orders of the rows.
    """
    away, apart = outputs - outputs.median(0).values, data - data.median(0).values
    cosines = nn.functional.normalize(away, dim=1) @ nn.functional.normalize(apart, dim=1).T
    centred = cosines - cosines.mean(0) - cosines.mean(1, keepdim=True) + cosines.mean()
    spread = float(centred.square().sum() / (len(data) - 1)) ** 0.5
    enough = min(_CHANCE, max(_LEAST_CHANCE, _OF_MATCHING * (len(data) - 1) ** 0.5))
    if spread > 0 and float(centred.trace()) < enough * spread:
        return (
            f"`data` may not belong to `latents` row by row: of {len(data)} rows compared, decoder(latents) is hardly "
            "closer, if at all, to the data of its own row than to those of others. Check that both are in one order, "
            "and that the decoder reconstructs these data."
        )
    # a model that has all but collapsed varies less than its data too, but its mean is theirs
    varies, level = float(apart.norm(dim=1).median() / away.norm(dim=1).median()), float(data.mean(0).norm())
    off_zero = level > _OFF_ZERO * float(data.norm(dim=1).median())
    if off_zero and min(varies, level / max(float(outputs.mean(0).norm()), 1e-300)) > _LARGER:
        return (
            f"`data` may be scaled otherwise than the decoder's output: of {len(data)} rows compared they vary "
            f"{varies:.3g} times as much as decoder(latents). Bring them into the form that the decoder reconstructs, "
            "such as images from 0 to 1."
        )
    return ""
