"""Files of tensors with JSON beside them: safetensors, written whole or not at all, never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import CheckpointError, InvalidArgumentError
from .output import write_file

FORMAT = "posthoc_metric"
VERSION = 1


def write(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Replace ``path`` as a whole, or leave it as it was.

    Raises:
        OutputError: the folder cannot be written to, or the disk is full.
    """
    # copies, as safetensors refuses tensors that share their memory
    order = torch.contiguous_format
    contents = {key: value.detach().cpu().clone(memory_format=order) for key, value in tensors.items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "facts": json.dumps(facts)}
    metadata["digest"] = _digest(contents, metadata["facts"])
    write_file(path, _in_order(safetensors.torch.save(contents, metadata)))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file that :func:`write` made.

    Raises:
        CheckpointError: no such file, not a file of this library, cut short, or from a newer version.
    """
    if not isinstance(path, (str, os.PathLike)) or "\0" in str(path):
        raise InvalidArgumentError(
            f"`path` must be the path of a file that `repaired.save` wrote; got {path!r:.60}. "
            "The order is pm.load(path, decoder)."
        )
    source = Path(path)
    if not source.is_file():
        what = "it is a folder" if source.is_dir() else "no such file"
        raise CheckpointError(f"cannot read {str(source)!r}: {what}. Pass the file that `repaired.save(path)` wrote.")
    try:
        with safetensors.safe_open(source, framework="pt") as stream:
            metadata = stream.metadata() or {}
            # a copy is aligned as fresh tensors are; matrix products of others round differently
            tensors = {key: stream.get_tensor(key).clone() for key in stream.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {str(source)!r}: it is not a whole safetensors file ({error}). "
            "A decoder's checkpoint is read by `pm.load_decoder`, a repaired metric by `pm.load`."
        ) from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"cannot read {str(source)!r}: it is a safetensors file, but not one that `repaired.save` wrote. "
            "A decoder's checkpoint is read by `pm.load_decoder`."
        )
    try:
        version, facts = int(metadata["version"]), json.loads(metadata["facts"])
        if not isinstance(facts, dict):
            raise ValueError("no facts")
    except (KeyError, ValueError, RecursionError):
        raise CheckpointError(f"cannot read {str(source)!r}: its metadata are damaged. Save it again.") from None
    if metadata.get("digest") != _digest(tensors, metadata["facts"]):
        raise CheckpointError(
            f"cannot read {str(source)!r}: its content is not what was saved, so that it was damaged since. "
            "Copy or save it again."
        )
    if version > VERSION:
        raise CheckpointError(
            f"cannot read {str(source)!r}: it has format version {version}, and this library reads up to {VERSION}. "
            "Upgrade posthoc-metric."
        )
    return tensors, facts


def latent_columns(path: str | Path) -> int | None:
    """How many columns the latents in a file have, by its header alone; ``None`` where :func:`read` would refuse it."""
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            return int(stream.get_slice("latents").get_shape()[1])
    except (safetensors.SafetensorError, OSError, IndexError):
        return None


def _digest(tensors: dict[str, Tensor], facts: str) -> str:
    """What tells a file from a damaged one: safetensors has no checksum of its own."""
    found = hashlib.sha256(facts.encode())
    for key, value in sorted(tensors.items()):
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _in_order(content: bytes) -> bytes:
    """The same file with its header sorted: safetensors orders metadata anew in every process."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]
