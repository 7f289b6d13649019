"""Shrink the demo's figures to what the README shows.

    posthoc-metric demo && python demos/readme_pictures.py

Reads ``maps.png`` and ``geodesics.png`` from the demo's folder and writes them to ``demos/images/``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

PICTURES = ("maps.png", "geodesics.png")
WIDTH = 900
COLOURS = 255


def main(source: Path = Path("posthoc-metric-demo"), out: Path | None = None, quick: bool = False) -> list[Path]:
    """Write the small pictures and return where they are; ``quick`` makes them smaller still, for the tests."""
    out = out or Path(__file__).parent / "images"
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in PICTURES:
        with Image.open(source / name) as picture:
            width = WIDTH // 4 if quick else WIDTH
            small = picture.convert("RGB").resize(
                (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
            )
        small.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(
            out / name, optimize=True
        )
        written.append(out / name)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="?", default=Path("posthoc-metric-demo"), help="the demo's folder")
    for path in main(parser.parse_args().source):
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
