"""scikit-learn models in skops format; a multi-layer perceptron is rebuilt in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import UnsafeFileError
from .extras import need
from .sniff import Container

_ACTIVATIONS = {"identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}

#: scikit-learn's own records of a training run, which skops does not list as safe but which only hold numbers
_PLAIN = [
    f"sklearn.neural_network._stochastic_optimizers.{name}"
    for name in ("AdamOptimizer", "SGDOptimizer", "BaseOptimizer")
]


def read_skops(container: Container, trust: bool) -> Any:
    """The estimator, or for an ``MLPRegressor`` the same function as a module.

    Raises:
        UnsafeFileError: it names types that skops does not know to be safe, and not ``trust``.
        CheckpointError: it is damaged.
        MissingExtraError: skops is not installed.
    """
    skops = need("skops.io", "skops", "reading a scikit-learn model in skops format")
    try:
        untrusted = [name for name in skops.get_untrusted_types(file=container.path) if name not in _PLAIN]
    except Exception as error:  # damage shows in many ways
        raise container.damaged(error) from error
    if untrusted and not trust:
        raise UnsafeFileError(
            f"{container.path} looks like {container.looks_like} that names types which may run code: "
            f"{', '.join(untrusted[:5])}. Pass trust=True if you trust where it comes from."
        )
    try:
        return rebuilt(skops.load(container.path, trusted=[*untrusted, *_PLAIN]))
    except Exception as error:  # damage shows in many ways
        raise container.damaged(error) from error


def rebuilt(estimator: Any) -> Any:
    """An ``MLPRegressor`` as an ``nn.Sequential`` in float64; anything else as it is."""
    from sklearn.neural_network import MLPRegressor

    if not isinstance(estimator, MLPRegressor):
        return estimator
    activation = _ACTIVATIONS[estimator.activation]
    layers: list[nn.Module] = []
    for weight, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        linear = nn.Linear(weight.shape[0], weight.shape[1], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T.astype("float64")))
            linear.bias.copy_(torch.from_numpy(bias.astype("float64")))
        layers += [linear, activation()]
    layers[-1] = _ACTIVATIONS[estimator.out_activation_]()
    return nn.Sequential(*layers).requires_grad_(False)
