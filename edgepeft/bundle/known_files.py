"""Files whose hash was found before, so that a bundle that did not change opens without being hashed again.

A file is known by its device, inode, size and two times. The second, ``ctime``, is set by the kernel at each write, rename
and replacement and cannot be set by hand, so a changed file is not known. (On Windows it is the time of creation: there an
edit that keeps the size and puts the time of modification back goes unseen.)
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

from ..cache import cache_dir
from ..json_text import json_text
from .opening import Identity

#: A file that was written this short a time ago could be written again within one tick of its file system's clock (2 s on
#: FAT) and look the same: it is hashed, and not remembered. git has the same rule for its index.
TICK_NS = 2_000_000_000
#: Files remembered, the last ones; and the bytes of the record that are read at most.
_LIMIT = 2048
_RECORD_BYTES = 1 << 20
_HASH_DIGITS = 64


def settled(identity: Identity, now_ns: int) -> bool:
    """Whether a file was last written so long before ``now_ns`` that a write from then on changes its identity."""
    return now_ns - max(identity.mtime_ns, identity.ctime_ns) > TICK_NS


class KnownFiles:
    """Hashes by :class:`Identity`, kept in the user's cache.

    The record is a help, never needed: where it is damaged, another user's, or cannot be written, files are hashed again.
    Two processes that write at once keep one of the two records whole.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, str] | None = None
        self._fresh: dict[str, str] = {}

    @property
    def path(self) -> Path | None:
        """Where the record is kept; ``None`` where the user has no home and names no cache."""
        try:
            return self._path or cache_dir() / "verified.json"
        except RuntimeError:
            return None

    def hash_of(self, identity: Identity) -> str | None:
        """sha256 of the file with this identity, where it is known."""
        if self._known is None:
            self._known = _read(self.path)
        return self._known.get(_key(identity))

    def remember(self, identity: Identity, sha256: str) -> None:
        """Keep the hash of a :func:`settled` file for :meth:`save`."""
        self._fresh[_key(identity)] = sha256

    def save(self) -> None:
        """Add what was remembered to the record, if anything was."""
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, {}
        # Another process may have written since; what it knows is kept, and what was used last stands last.
        merged = {name: value for name, value in _read(self.path).items() if name not in fresh} | fresh
        self._known = dict(list(merged.items())[-_LIMIT:])
        # A cache that cannot be written (read-only home, full disk) costs time, not correctness.
        with contextlib.suppress(OSError):
            _write(self.path, self._known)


def _key(identity: Identity) -> str:
    return ":".join(map(str, astuple(identity)))


def _read(path: Path | None) -> dict[str, str]:
    """The record's entries; none where it is missing, damaged or not only ours to write."""
    if path is None:
        return {}
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not _ours(status):
                return {}
            content = file.read(_RECORD_BYTES + 1)
        found = json.loads(content) if len(content) <= _RECORD_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, Mapping):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str) and len(value) == _HASH_DIGITS}


def _ours(status: os.stat_result) -> bool:
    """Whether nobody else may write the file: a forged record would let any content pass."""
    if os.name == "nt":
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write(path: Path | None, entries: Mapping[str, str]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(json_text(entries, indent=None))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
