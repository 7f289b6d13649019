from .core import Decoder

__all__ = ["Decoder"]
