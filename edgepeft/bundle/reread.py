"""Reading a bundle that another process may be changing."""

from __future__ import annotations

import functools
import inspect
import stat
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from .manifest import MANIFEST_NAME

P = ParamSpec("P")
T = TypeVar("T")

#: How often a bundle that changes every time is read before its error stands.
_TRIES = 8


def rereading(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function of a bundle again where it fails and its bundle was changed meanwhile.

    A writer exchanges the whole folder, so a reader that opens several files may see the old manifest and the new files.
    ``function``'s first parameter is the bundle's path; anything else there (a bundle that is open) is not read again. An
    error over a bundle that did not change is raised as it is: a corrupt bundle stays one.

    Example::

        @rereading
        def labels(path: Path) -> tuple[str, ...]:
            return read_bundle(path).manifest.labels or ()
    """
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        bundle = args[0] if args else kwargs.get(first)
        if not isinstance(bundle, (str, Path)):
            return function(*args, **kwargs)
        for _ in range(_TRIES - 1):
            before = _stamp(Path(bundle))
            try:
                return function(*args, **kwargs)
            except Exception:  # whatever a file that went away gives: ONNX Runtime's exception types are not public
                if _stamp(Path(bundle)) == before:
                    raise
        return function(*args, **kwargs)

    return wrapper


def _stamp(bundle: Path) -> tuple[tuple[int, ...] | None, ...]:
    """What differs after an exchange: which folder, and which manifest of what size and time."""
    return _identity(bundle), _identity(bundle / MANIFEST_NAME)


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # nothing there, or no path: a NUL, half of a surrogate pair
        return None
    # A folder's times change with what is written into it, a report for one: only which folder it is counts.
    times = () if stat.S_ISDIR(found.st_mode) else (found.st_size, found.st_mtime_ns)
    return (found.st_dev, found.st_ino, *times)
