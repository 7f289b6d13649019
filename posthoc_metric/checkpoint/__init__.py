"""Containers on disk -> Decoder, safe by default."""

from .load import load_decoder

__all__ = ["load_decoder"]
