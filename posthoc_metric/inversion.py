"""What an inversion found, and how the work on each row ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ._arrays import as_tensor
from .outcome import Outcome, advice, tally


class InversionStatus(Outcome):
    """How the work on one row ended.  ``str(status)`` is the advice."""

    REPRODUCED = "The decoder reproduces the row to the tolerance asked for."
    BEST_FIT = (
        "The latent is stationary, yet the decoder does not reproduce the row to the tolerance. Either the row lies "
        "off the decoder's range, and `residual` says how far, or this is a local minimum: raise `tries` or `starts`."
    )
    UNFINISHED = (
        "The residual was still falling, at the step limit or by less than a tenth over a sixth of the steps allowed: "
        "raise `max_steps`, or take `residual` as it is. Also where the Jacobian is not finite at the latent reached."
    )
    NOT_FINITE = (
        "The decoder's output or Jacobian is NaN or infinite at every start tried for this row, so its latent is NaN. "
        "Give `prior` latents at which the decoder is defined."
    )


@dataclass(frozen=True)
class Inversion:
    """Latents for data; the first axis of everything is the batch.

    Attributes:
        latents: (B, d), in the kind and dtype of the data.
        residual: ``‖f(z) - x‖ / ‖x‖`` (B,) at these latents; for a row of zeros over the rows' root mean square norm.
        status: how the work on each row ended, with advice.
        converged: (B,) whether the latent is stationary or reproduces its row.
        steps: Jacobians evaluated for each row, over all its starts (B,).
        starts: from how many starts each row was refined (B,).
    """

    latents: Any
    residual: Any
    status: tuple[InversionStatus, ...]
    converged: Any
    steps: Any
    starts: Any

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        residual = as_tensor(self.residual)
        known = residual[torch.isfinite(residual)]
        residuals = f"; residuals {float(known.min()):.4g} to {float(known.max()):.4g}" if len(known) else ""
        many, dim = "" if len(self) == 1 else "s", self.latents.shape[1]
        first = f"{len(self)} latent{many}, d = {dim}: {tally(self.status) or 'nothing to invert'}{residuals}"
        return "\n".join([first, *advice(self.status, InversionStatus.REPRODUCED)])
