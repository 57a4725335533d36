"""What may name a file, an adapter or a variant: the same on every platform that a bundle is copied to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

#: Adapter and variant names become file names and tensor prefixes.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

#: Windows opens a device by these names, in every folder, whatever suffix follows.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
#: Longest path of a file in a bundle, and longest part of one, in bytes; file systems take 255 for a part.
_MAX_PATH, _MAX_PART = 1024, 255


def _unportable(part: str) -> str | None:
    """Why a part of a path cannot be the name of a file everywhere; ``None`` where it can."""
    if part.split(".")[0].rstrip(" ").casefold() in _DEVICES:
        return "Windows takes it for a device"
    if part != part.rstrip(". "):
        return "Windows drops dots and spaces at the end of a name"
    if any(ord(character) < 32 or character in '<>"|?*\x7f' for character in part):
        return "it holds a character that Windows does not take"
    return None


def check_relative(path: str) -> str:
    """``path`` if it can be a file of a bundle; else ``ValueError`` that says why.

    It must be relative, in its shortest form (``onnx/model.onnx``), and stay inside the folder on every platform.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or not path:
        raise ValueError(f"{path!r} leaves the bundle folder; only relative paths inside it are allowed")
    if str(pure) != path or path == ".":
        raise ValueError(f"{path!r} is not the shortest form of a path")
    if len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH or any(
        len(part.encode("utf-8", "surrogatepass")) > _MAX_PART for part in pure.parts
    ):
        raise ValueError(f"{path[:40]!r}… is longer than file systems take")
    for part in pure.parts:
        why = _unportable(part)
        if why is not None:
            raise ValueError(f"{path!r} cannot be a file of a bundle: {part!r} is no file name everywhere, {why}")
    return path


def check_name(name: str) -> str:
    """``name`` if it can name an adapter or variant; else ``ValueError`` that says what a name may hold."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} cannot be a name: use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    why = _unportable(name)
    if why is not None:
        raise ValueError(f"{name!r} cannot be a name: it becomes a file's name, and {why}")
    return name


def check_distinct(names: Iterable[str], what: str) -> None:
    """``ValueError`` where two of ``names`` are one file on a file system that does not tell case apart."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"the {what} {other!r} and {name!r} differ only in case: they would be one file on Windows and macOS"
            )
