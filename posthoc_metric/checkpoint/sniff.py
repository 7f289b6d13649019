"""What a path holds, by its content; of names only ``.onnx`` is believed, where nothing else was recognised."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .._arrays import describe
from ..errors import CheckpointError, InvalidArgumentError
from ..machine import physical_memory

_TEXT = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"<!doctype", "an HTML page: the download gave a web page and not the file"),
    (b"<html", "an HTML page: the download gave a web page and not the file"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x93NUMPY", "an array in NumPy's .npy format, which holds numbers and no model"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: save the Keras model as .keras, or convert the weights to safetensors"),
)


@dataclass(frozen=True)
class Container:
    """A path and what it holds.

    Attributes:
        kind: one of the keys of :data:`~posthoc_metric.checkpoint.load.READERS`.
        looks_like: the same in words, for messages.
    """

    path: Path
    kind: str
    looks_like: str

    def damaged(self, error: Exception) -> CheckpointError:
        """What to say where a reader of this kind fails with ``error``."""
        words = " ".join(str(error).split())[:200]
        return CheckpointError(
            f"{self.path} looks like {self.looks_like} but cannot be read as one: it was cut short or damaged "
            f"({type(error).__name__}: {words}). Save or download it again."
        )


def check_path(path: object) -> Path:
    """``path``, with the user's home for ``~``.

    Raises:
        InvalidArgumentError: it is no path.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str) or not str(path):
        raise InvalidArgumentError(f"`path` must be the path of a file or folder; got {describe(path)}.")
    return Path(os.path.expanduser(os.fspath(path)))


def sniff(path: str | os.PathLike[str]) -> Container:
    """What ``path`` holds.

    Raises:
        InvalidArgumentError: ``path`` is no path.
        CheckpointError: there is no such path, or nothing there is a container this library reads.
    """
    path = check_path(path)
    if not path.exists():
        raise CheckpointError(f"`path` must be an existing file or folder; there is no {path}. Check the spelling.")
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise CheckpointError(f"`path` must be a file or a folder; {path} is neither (a device or a pipe).")
    _refuse_size(path)
    try:
        return _file(path)
    except PermissionError:
        raise CheckpointError(f"{path} cannot be read: permission denied. Change its permissions.") from None


def _refuse_size(path: Path) -> None:
    size, memory = path.stat().st_size, physical_memory()
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes). Save or download it again.")
    if size > memory:
        raise CheckpointError(
            f"{path} is huge: {size / 2**30:,.0f} GiB, more than this machine's {memory / 2**30:,.0f} GiB of memory. "
            "A decoder's weights are smaller; save them alone."
        )


def _file(path: Path) -> Container:
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if head.startswith(b"PK"):
        return _zip(path)
    lowered = head.lstrip().lower()
    for start, words in _TEXT:
        if head.startswith(start) or lowered.startswith(start):
            raise CheckpointError(f"{path} looks like {words}.")
    length = int.from_bytes(head[:8], "little") if len(head) >= 8 else 0
    if len(head) > 8 and head[8:9] == b"{" and length >= 2:
        if length > size - 8:
            raise CheckpointError(
                f"{path} looks like safetensors that were cut short or damaged: its header claims {length:,} bytes and "
                f"the file has {size:,}. Save or download it again."
            )
        return Container(path, "safetensors", "safetensors")
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:
        if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in head[:32]:
            return Container(path, "torch", "a torch.save file of before torch 1.6")
        return Container(path, "pickle", "a Python pickle")
    if path.suffix == ".onnx" or _is_onnx(head):
        return Container(path, "onnx", "an ONNX graph")
    raise CheckpointError(
        f"{path} looks like no container this library reads: it begins with {head[:12]!r}. It reads torch.save "
        "files, safetensors, TorchScript, torch.export .pt2, Keras .keras, ONNX, skops, and folders of pythae, "
        "scvi-tools and diffusers. If it was cut short, save or download it again."
    )


def _is_onnx(head: bytes) -> bool:
    """A protocol buffer whose first field is the small number that ONNX calls its IR version."""
    return len(head) > 4 and head[0] == 0x08 and 0 < head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x3A)


def _zip(path: Path) -> Container:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} looks like a zip container (torch.save, TorchScript, .pt2, .keras or skops) that was cut short or "
            f"damaged ({error}). Save or download it again."
        ) from None
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise CheckpointError(f"{path} is a zip container with two members of one name. Save it again.")
    unpacked, memory = sum(info.file_size for info in infos), physical_memory()
    if unpacked > memory:
        raise CheckpointError(
            f"{path} is huge: a zip container that unpacks to {unpacked / 2**30:,.0f} GiB, more than this machine's "
            f"{memory / 2**30:,.0f} GiB of memory."
        )
    inner = {name.split("/", 1)[1] if "/" in name else name for name in names}
    if "schema.json" in names:
        return Container(path, "skops", "a scikit-learn model in skops format")
    if "model.weights.h5" in names and "config.json" in names:
        return Container(path, "keras", "a Keras 3 model")
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return Container(path, "exported", "a torch.export program (.pt2)")
    if "data.pkl" in inner and "constants.pkl" in inner:
        return Container(path, "torchscript", "a TorchScript archive")
    if "data.pkl" in inner:
        return Container(path, "torch", "a torch.save file")
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(
            f"{path} looks like NumPy arrays (.npz), which hold numbers and no model. If they are weights by name, "
            "save them with torch.save(dict(numpy.load(path)), ...) and pass factory=."
        )
    raise CheckpointError(
        f"{path} looks like an ordinary zip archive ({', '.join(names[:3]) or 'nothing in it'}). Unpack it first."
    )


def _folder(path: Path) -> Container:
    names = {entry.name for entry in path.iterdir()}
    if "model_index.json" in names:
        return Container(path, "diffusers", "a diffusers pipeline folder")
    if "config.json" in names and "_class_name" in _json(path / "config.json"):
        return Container(path, "diffusers", "a diffusers model folder")
    if "model_config.json" in names and "model.pt" in names:
        return Container(path, "pythae", "a pythae model folder")
    if "model.pt" in names:
        return Container(path, "scvi", "a scvi-tools model folder")
    if "saved_model.pb" in names:
        raise CheckpointError(f"{path} looks like a TensorFlow SavedModel. Save the model as .keras or ONNX instead.")
    shown = ", ".join(sorted(names)[:5]) or "nothing"
    raise CheckpointError(
        f"{path} is a folder that looks like none of pythae's, scvi-tools's or diffusers's (it holds {shown}). "
        "Pass the checkpoint file inside it."
    )


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
