"""Optional packages: imported where they are used, and named by their extra where they lack."""

from importlib import import_module
from typing import Any


def need(module: str, extra: str) -> Any:
    """Return a module that an extra of this package brings.

    Args:
        module: its full name.
        extra: of the package, in pyproject.toml.

    Raises:
        ImportError: it cannot be imported; the message says what to install.

    >>> need("json", "tune").dumps([])
    '[]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{module} cannot be imported ({error}): pip install "onecycle[{extra}]"'
        ) from error
