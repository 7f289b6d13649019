"""A run of a study: its folders, its cache of trained models, what it prints and what it publishes."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import posthoc_metric as pm
from posthoc_metric.errors import CalibrationWarning

from .data import Images, load_images
from .tables import Table

M = TypeVar("M", bound=nn.Module)
DEMOS = Path(__file__).resolve().parents[1]
#: a picture in the README weighs no more than this
_MOST_BYTES = 120_000


@dataclass
class Study:
    """One run.

    Attributes:
        name: of the script; names its outputs.
        quick: small models on the bundled digits, for the tests.
        out: folder for the table, the pictures and the trained models; ``demos/output`` by default.
        mnist: folder with MNIST's files.
        publish: also write the table to ``demos/results`` and the picture to ``demos/images``.
    """

    name: str
    quick: bool = False
    out: Path | None = None
    mnist: Path | None = None
    publish: bool = False
    started: float = field(default_factory=time.perf_counter)
    repairs: list[bool] = field(default_factory=list)
    earlier: float = 0.0

    def __post_init__(self) -> None:
        output = DEMOS / "output" / ("quick" if self.quick else "")
        self.folder = output / self.name if self.out is None else Path(self.out)
        self.models = output / "models" if self.out is None else self.folder / "models"
        for folder in (self.folder, self.models):
            folder.mkdir(parents=True, exist_ok=True)

    def images(self) -> Images:
        return load_images(self.mnist, quick=self.quick)

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.started:6.1f} s] {text}", flush=True)

    def cached(self, name: str, settings: dict[str, Any], build: Callable[[], M], train: Callable[[M], None]) -> M:
        """A trained model in eval mode: read from the cache where these settings were trained before.

        ``settings`` must hold a ``seed`` and all that the training depends on.
        """
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
        path = self.models / f"{name}-{digest}.safetensors"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            model = build()
            if path.exists():
                model.load_state_dict(safetensors.torch.load_file(path))
            else:
                self.say(f"training {name}")
                train(model)
                beside = path.with_name(f".{path.name}.{os.getpid()}")
                safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, beside)
                beside.replace(path)
        return model.eval().requires_grad_(False)

    def remembered(self, key: str, settings: Any, compute: Callable[[], Any], *, live: bool = False) -> Any:
        """What ``compute`` gives, in JSON's terms, so that an interrupted study goes on where it was.

        It is read back only where these settings, the library, the studies' shared code and the script are the same
        to the byte.  ``live`` computes in any case, for results whose by-products a picture needs.
        """
        content = json.dumps(settings, sort_keys=True, default=str).encode() + self._sources()
        path = self.folder / "parts" / f"{key}-{hashlib.sha256(content).hexdigest()[:12]}.json"
        if path.exists() and not live:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.earlier += stored["seconds"]
            self.repairs += stored["repairs"]
            return stored["value"]
        began, count = time.perf_counter(), len(self.repairs)
        value = json.loads(json.dumps(compute()))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = {"value": value, "seconds": time.perf_counter() - began, "repairs": self.repairs[count:]}
        path.write_text(json.dumps(part), encoding="utf-8")
        return value

    def _sources(self) -> bytes:
        library = Path(pm.__file__).parent
        files = [*sorted(library.rglob("*.py")), *sorted((DEMOS / "common").glob("*.py")), DEMOS / f"{self.name}.py"]
        return b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)

    def repair(self, decoder: pm.Decoder, latents: Tensor, data: Tensor | None, **options: Any) -> pm.RepairedMetric:
        """The library's default repair; whether it warned that it misses a target is counted below the tables."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            metric = pm.repair(decoder, latents, data, **options)
        for item in found:
            if not issubclass(item.category, CalibrationWarning):
                warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
        self.repairs.append(any(issubclass(item.category, CalibrationWarning) for item in found))
        return metric

    def finish(self, headline: str, tables: list[Table], figure: Figure) -> None:
        """Print the tables and write them and the picture."""
        minutes = (time.perf_counter() - self.started + self.earlier) / 60
        body = "\n\n".join(str(table) for table in tables)
        made = f"Made by `demos/{self.name}.py` in {minutes:.1f} minutes."
        if any(self.repairs):
            made += (
                f" Of {len(self.repairs)} repairs {sum(self.repairs)} warned that they miss a target of the audit; "
                "they are in the tables as they are."
            )
        text = f"# {self.name}\n\n{headline}\n\n{body}\n\n{made}\n"
        picture = _png(figure)
        places = [(self.folder, self.folder)]
        if self.publish and not self.quick:
            places.append((DEMOS / "results", DEMOS / "images"))
        for results, images in places:
            results.mkdir(parents=True, exist_ok=True)
            images.mkdir(parents=True, exist_ok=True)
            (results / f"{self.name}.md").write_text(text, encoding="utf-8")
            (images / f"{self.name}.png").write_bytes(picture)
        print(text)


def _png(figure: Figure) -> bytes:
    """The figure with a palette of 255 colours, at the highest resolution that keeps it small."""
    for dpi in (130, 110, 95, 80, 65, 50):
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=dpi, facecolor="white", bbox_inches="tight", pad_inches=0.08)
        packed = io.BytesIO()
        _few_colours(Image.open(drawn).convert("RGB")).save(packed, "PNG", optimize=True)
        if len(packed.getvalue()) <= _MOST_BYTES:
            break
    return packed.getvalue()


def _few_colours(image: Image.Image) -> Image.Image:
    """255 colours: most for gradients, which take most of the area, the rest for thin lines, or they lose theirs."""
    parts = ((Image.Quantize.MEDIANCUT, 175), (Image.Quantize.MAXCOVERAGE, 80))
    colours: list[int] = []
    for method, count in parts:
        colours += (image.quantize(count, method).getpalette() or [])[: 3 * count]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def arguments(description: str) -> dict[str, Any]:
    """The command line that all studies share."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models on the bundled digits, in seconds")
    parser.add_argument("--out", type=Path, help="folder for table, pictures and models (default: demos/output)")
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's IDX files (default: fetched from OpenML)")
    parser.add_argument("--publish", action="store_true", help="also write into demos/results and demos/images")
    return vars(parser.parse_args())
