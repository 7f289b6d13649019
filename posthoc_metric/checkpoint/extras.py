"""Optional packages: there, or an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import MissingExtraError


def need(package: str, extra: str, purpose: str) -> ModuleType:
    """``package``, imported now.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != package.split(".")[0]:
            raise MissingExtraError(
                f"{purpose} needs {package}, which is installed but misses {error.name}. "
                f"Reinstall it with: python -m pip install 'posthoc-metric[{extra}]'"
            ) from error
        raise MissingExtraError(
            f"{purpose} needs the package {package}. Install it with: python -m pip install 'posthoc-metric[{extra}]'"
        ) from None
