"""One self-contained HTML page from the facts in ``audit.json`` and the pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_PLACES = {True: ("pass", "Pass"), False: ("fail", "Fail"), None: ("open", "Not judged")}


@dataclass(frozen=True)
class Inlined:
    """A picture as the page holds it."""

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def source(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def render(facts: dict[str, Any], pictures: Sequence[Inlined], title: str) -> str:
    """The page as text.

    Args:
        facts: what ``audit.json`` holds, after its own rules for NaN and infinities. Every number on the page is
            looked up in it and carries its full value and its place in an HTML ``data`` element.
        pictures: in order.
        title: of the page.
    """
    environment = Environment(
        loader=PackageLoader("posthoc_metric", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    judged = [row for row in facts["criteria"] if row["passed"] is not None]
    return environment.get_template("report.html").render(
        facts=facts,
        pictures=pictures,
        title=title,
        num=_number_from(facts),
        verdict=_PLACES.__getitem__,
        coded=coded,
        met=sum(row["passed"] for row in judged),
        judged=len(judged),
        index={row["name"]: position for position, row in enumerate(facts["criteria"])},
        published=any(row["published"] is not None for row in facts["criteria"]),
    )


def coded(text: str) -> Markup:
    """What stands between backticks as code."""
    parts = enumerate(text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if odd % 2 else escape(part) for odd, part in parts)


def readable(value: Any, style: str = "number") -> str:
    """A number in three significant digits, or as a percentage; words for what is no number."""
    if value is None:
        return "–"
    if value in ("Infinity", "-Infinity"):
        return "∞" if value == "Infinity" else "−∞"
    if style == "percent":
        share = 100 * value
        digits = 0 if share == 0 or share >= 99.95 else 1
        return f"{share:.{digits}f} %"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    size = int(exponent)
    if -3 <= size < 5:
        text = f"{value:,.{max(2 - size, 0)}f}".replace(",", "\u202f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text.replace("-", "−")
    shown = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    return f"{shown} × 10{str(size).translate(_SUPERSCRIPT)}"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _number_from(facts: dict[str, Any]) -> Callable[..., Markup]:
    def number(*path: str | int, style: str = "number") -> Markup:
        value: Any = facts
        for key in path:
            value = value[key]
        place = ".".join(map(str, path))
        raw = "" if value is None else value
        return Markup('<data value="{}" data-path="{}" data-style="{}">{}</data>').format(
            repr(raw) if isinstance(raw, float) else raw, place, style, escape(readable(value, style))
        )

    return number
