"""Pictures of a metric and of its repair: axes in, axes out.

Nothing here touches pyplot or any global setting; :mod:`posthoc_metric.report` composes these into figures.
"""

from .audit import audit_panel, condition_by_offset, log_volume_by_offset
from .curves import draw_curves, draw_frames
from .fields import QUANTITIES, Quantity, colour_bar, draw_field, evaluate, shared_norm
from .planes import Plane, latent_plane, principal_plane
from .style import FAINT, INK, MUTED, OFF_DATA, ON_DATA, SUPPORT, TRACES, Trace, heading, new_axes, tidy

__all__ = [
    "FAINT",
    "INK",
    "MUTED",
    "OFF_DATA",
    "ON_DATA",
    "QUANTITIES",
    "SUPPORT",
    "TRACES",
    "Plane",
    "Quantity",
    "Trace",
    "audit_panel",
    "colour_bar",
    "condition_by_offset",
    "draw_curves",
    "draw_field",
    "draw_frames",
    "evaluate",
    "heading",
    "latent_plane",
    "log_volume_by_offset",
    "new_axes",
    "principal_plane",
    "shared_norm",
    "tidy",
]
