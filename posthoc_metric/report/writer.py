"""Everything a report consists of, written into one folder, whole or not at all."""

from __future__ import annotations

import io
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.style
import numpy as np

from .._arrays import as_tensor, describe
from ..diagnostics import Audit
from ..errors import InvalidArgumentError
from ..output import jsonable, staged_folder, to_json
from .figures import DPI, pictures
from .page import Inlined, render
from .pairs import fisher_rao_family, pair_statistics

if TYPE_CHECKING:
    from ..geodesic import Solution
    from ..repair import RepairedMetric

_VERSIONS = ("posthoc_metric", "torch", "numpy", "scipy", "scikit-learn", "gpytorch", "matplotlib")


def write_report(
    out_dir: str | Path,
    repaired: RepairedMetric,
    before: Solution,
    after: Solution,
    audit: Audit,
    *,
    image_shape: tuple[int, ...] | None = None,
    title: str = "Repaired latent geometry",
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``report.html``, ``audit.json``, ``geodesics.npz`` and the figures as PNG into a folder.

    Args:
        out_dir: made if it is not there; what else is in it stays.
        repaired: the metric.
        before, after: geodesics of ``repaired.decoder_metric`` and of ``repaired`` between the same pairs.
        audit: of ``repaired``.
        image_shape: (h, w), (h, w, 3) or (3, h, w), if the decoder's outputs are images in [0, 1]; frames are shown
            then.  Outputs of a decoder that returns (3, h, w) are taken so under either name.
        title: of the page.
        settings: further facts for the page's last section, by their names: numbers, text, lists and dictionaries.

    Returns:
        What ``audit.json`` holds.

    Raises:
        InvalidArgumentError: ``image_shape`` does not fit the decoder, the solutions differ in their pairs, or
            ``settings`` hold what JSON cannot.
        OutputError: the folder cannot be written to; it is then as it was.
    """
    check_image_shape(image_shape, repaired.decoder.output_dim)
    _check_pairs(before, after)
    _check_settings(settings or {})
    pairs = pair_statistics(repaired, before, after)
    facts = jsonable(
        {
            **audit.as_dict(),
            "geodesics": pairs.as_dict(),
            "settings": {**_settings(repaired), **(settings or {})},
            "versions": _versions(),
        }
    )
    # a page looks the same whatever style the caller draws in, and needs no TeX where that is part of it
    with staged_folder(out_dir) as draft, matplotlib.style.context("default"):
        inlined = []
        for picture in pictures(repaired, before, after, audit, pairs, image_shape):
            buffer = io.BytesIO()
            picture.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            inlined.append(Inlined(picture.name, picture.title, picture.caption, buffer.getvalue()))
            (draft / f"{picture.name}.png").write_bytes(buffer.getvalue())
        curves: dict[str, Any] = {**_curves(before, "before"), **_curves(after, "after")}
        np.savez_compressed(draft / "geodesics.npz", **curves)
        (draft / "audit.json").write_text(to_json(facts), encoding="utf-8")
        (draft / "report.html").write_text(render(facts, inlined, title), encoding="utf-8")
    return facts


def check_image_shape(image_shape: tuple[int, ...] | None, output_dim: int) -> None:
    """See that outputs of so many numbers can be shown as images of that shape, before long work begins.

    Raises:
        InvalidArgumentError: they cannot.
    """
    if image_shape is None:
        return
    known = len(image_shape) == 2 or (len(image_shape) == 3 and 3 in (image_shape[0], image_shape[2]))
    if not known or min(image_shape) < 1 or int(np.prod(image_shape)) != output_dim:
        raise InvalidArgumentError(
            f"`image_shape` must be (h, w), (h, w, 3) or (3, h, w) with {output_dim} entries, the decoder's "
            f"outputs; got {describe(image_shape)}. Leave it out if the outputs are no images."
        )


def _check_pairs(before: Solution, after: Solution) -> None:
    if tuple(before.points.shape[::2]) != tuple(after.points.shape[::2]):
        raise InvalidArgumentError(
            f"`before` and `after` must join the same pairs; got curves of shape {tuple(before.points.shape)} and "
            f"{tuple(after.points.shape)}. Solve both for the same start and end."
        )


def _check_settings(settings: dict[str, Any]) -> None:
    """See that ``audit.json`` can hold them, before pictures are drawn."""
    for name, value in settings.items():
        try:
            to_json(value)
        except TypeError:
            raise InvalidArgumentError(
                f"`settings` must hold numbers, text, lists and dictionaries, as JSON can; {name!r} is "
                f"{describe(value)}. Convert it, with str() or float()."
            ) from None


def _settings(repaired: RepairedMetric) -> dict[str, Any]:
    geometry, family = repaired.geometry, fisher_rao_family(repaired.decoder)
    return {
        "metric": f"Fisher-Rao, of {family} distributions" if family else "Euclidean in the decoder's output",
        "latent dimension": repaired.dim,
        "output dimension": repaired.decoder.output_dim,
        "latents": len(geometry.latents),
        "held-out latents in the audit": len(geometry.audit),
        "uncertainty": type(repaired.model).__name__,
        **{name.replace("_", " "): value for name, value in asdict(repaired.knobs).items()},
        "seed": geometry.seed,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _curves(solution: Solution, side: str) -> dict[str, np.ndarray]:
    """Arrays of one solution, first axis the pair."""
    arrays = {
        name: as_tensor(getattr(solution, name)).detach().cpu().numpy()
        for name in ("points", "length", "energy", "residual", "length_error", "steps", "converged")
    }
    arrays["status"] = np.array([status.name for status in solution.status])
    return {f"{side}_{name}": array for name, array in arrays.items()}
