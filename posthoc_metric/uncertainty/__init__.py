"""Models of what is not known of a decoder, and their calibration."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import CheckpointError, InvalidArgumentError
from .base import UncertaintyModel
from .calibration import Knobs
from .gate import Gate
from .rbf import RBF
from .rbf_published import PublishedRBF

#: gpytorch takes seconds to import, so only those who ask for a GP pay for it
_MODULES = {
    "rbf": (".rbf", "RBF"),
    "rbf-published": (".rbf_published", "PublishedRBF"),
    "gp": (".gp", "GaussianProcess"),
}

__all__ = ["RBF", "Gate", "Knobs", "PublishedRBF", "UncertaintyModel", "make_model", "model_class", "model_name"]


def make_model(name: str) -> Any:
    """An unfitted model by its public name."""
    if name not in _MODULES:
        known = ", ".join(repr(key) for key in _MODULES)
        raise InvalidArgumentError(f"`uncertainty` must be one of {known} or an UncertaintyModel; got {name!r}.")
    return model_class(name)()


def model_class(name: str) -> Any:
    """The class behind a public name."""
    if name not in _MODULES:
        raise CheckpointError(
            f"the file's uncertainty model is {name!r}, which this library does not have. "
            "Pass its class: pm.load(path, decoder, model=YourModel)."
        )
    module, attribute = _MODULES[name]
    return getattr(import_module(module, __name__), attribute)


def model_name(model: Any) -> str:
    """The public name of a model of the library, or the class's own."""
    for name, (_, attribute) in _MODULES.items():
        if type(model).__name__ == attribute and type(model).__module__.startswith(__name__):
            return name
    return f"{type(model).__module__}:{type(model).__qualname__}"
