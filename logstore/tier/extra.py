"""The packages that files need, imported when the first file is touched."""

from __future__ import annotations

import importlib
from typing import Any, Final

from logstore.errors import ConfigurationError

__all__ = ["needed"]

_PACKAGES: Final = {"pyarrow": "pyarrow", "fsspec": "fsspec"}


def needed(module: str) -> Any:
    """The module; raises ConfigurationError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = _PACKAGES.get(module.partition(".")[0], module)
        raise ConfigurationError(
            f"Segments in files need the package {package}, which is not installed: {error}.",
            advice="Run: pip install 'logstore-pg[tier]'",
            details={"package": package},
        ) from None
