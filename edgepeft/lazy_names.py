"""Packages whose names are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package that offers names of its modules without importing those with itself.

    Type checkers do not follow it: the package imports the same names under ``TYPE_CHECKING`` too
    (tests/unit/test_lazy_names.py compares the two).

    Args:
        package: The package's ``__name__``.
        homes: For each name the module that it lives in, relative to the package: ``{"open": ".runtime"}``.

    Returns:
        A function from a name to what it stands for, which raises :class:`AttributeError` for any other name; and one that lists
        these names with all else that the package has by now, for notebooks to complete.

    Example:
        >>> __getattr__, __dir__ = lazy_names("edgepeft.runtime", {"open": ".runtime"})
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name], package), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names
