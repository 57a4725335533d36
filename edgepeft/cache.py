"""Where what was fetched once is kept."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError


def cache_dir() -> Path:
    """The cache folder: ``$EDGEPEFT_CACHE``, or ``~/.cache/edgepeft``. It need not exist.

    Raises :class:`InputError` where the user has no home folder.
    """
    configured = os.environ.get("EDGEPEFT_CACHE")
    try:
        return Path(configured).expanduser() if configured else Path.home() / ".cache" / "edgepeft"
    except RuntimeError as error:
        raise InputError(
            "there is no home folder to keep the cache in (HOME is not set, and the user is not known): set EDGEPEFT_CACHE to "
            "the path of a folder"
        ) from error


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache: its path below the folder, its size in bytes, and when it was last used, in seconds since 1970."""

    name: str
    bytes: int
    used: float


#: Folders of the cache whose entries stand for themselves, and what they hold.
KINDS = {
    "assets": "models and texts of the demo and the tests",
    "runners": "compiled programs that run bundles",
    "sysroots": "a system for the emulated Arm target",
    "web": "npm packages for browsers and Node",
    "recipes": "what steps of `edgepeft build` made",
    "baselines": "reports and histories that `edgepeft check` fetched",
    "sensitivity": "what each matrix of a model is worth in bits",
    "warm": "models as ONNX Runtime packed them for this processor (`edgepeft warm`)",
}


def cache_entries() -> tuple[CacheEntry, ...]:
    """What the cache holds, largest first: each entry of the folders in :data:`KINDS`, and whatever else lies in it.

    A link is an entry of its own size: what it leads to is not looked at.
    """
    root = cache_dir()
    if not root.is_dir():
        return ()
    paths: list[Path] = []
    for path in root.iterdir():
        nested = path.name in KINDS and path.is_dir() and not path.is_symlink()
        paths.extend(path.iterdir() if nested else [path])
    found = [_entry(path, path.relative_to(root).as_posix()) for path in paths]
    return tuple(sorted(found, key=lambda entry: (-entry.bytes, entry.name)))


def _entry(path: Path, name: str) -> CacheEntry:
    size, used = 0, 0.0
    files = [path] if path.is_symlink() or not path.is_dir() else [path, *path.rglob("*")]
    for file in files:
        try:
            about = file.lstat()
        except OSError:  # another process removed it meanwhile
            continue
        if not stat.S_ISDIR(about.st_mode):
            size += about.st_size
        used = max(used, about.st_mtime, 0.0 if stat.S_ISDIR(about.st_mode) else about.st_atime)
    return CacheEntry(name, size, used)


def prune_cache(entries: Iterable[CacheEntry]) -> None:
    """Remove entries of the cache; what is needed again is fetched or made again.

    Raises:
        InputError: An entry's name leads out of the cache, or it cannot be removed.
    """
    root = cache_dir()
    for entry in entries:
        path = root / entry.name
        if ".." in Path(entry.name).parts or Path(entry.name).is_absolute() or path == root:
            raise InputError(f"{entry.name} is no entry of the cache {root}")
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{error.filename or path} cannot be removed: {error.strerror}") from error
