"""How much a decoder was asked to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Work:
    """Rows evaluated while counting.

    Attributes:
        values: rows of ``f(z)``, those that finite differences need included.
        jvps: rows of ``J(z) v``; a Jacobian of B rows counts B·d.
        vjps: rows of ``J(z)ᵀ u``.
    """

    values: int = 0
    jvps: int = 0
    vjps: int = 0
