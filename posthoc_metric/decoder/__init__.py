"""The first stage of the pipeline: any trained callable as a smooth map."""

from .core import Decoder
from .fisher_rao import fisher_rao
from .work import Work

__all__ = ["Decoder", "Work", "fisher_rao"]
