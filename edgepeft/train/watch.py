"""Files that are looked at until they change, so that training can begin again from the adapter that is there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

#: Seconds between two looks.
EVERY_S = 1.0

#: Names, sizes and times of files: what is cheap to look at.
Stamp = tuple[tuple[str, int, int], ...]


class Changes:
    """Files and folders as they were when this was made, and what of them changes afterwards.

    Args:
        files: What is looked at; a folder stands for the files in it.
        sleep: Waits so many seconds.
    """

    def __init__(self, files: Sequence[Path], sleep: Callable[[float], None] = time.sleep) -> None:
        self._files, self._sleep = tuple(files), sleep
        self._stamps = {file: _stamp(file) for file in files}
        self._known = {file: _content(file) for file in files}

    def wait(self) -> tuple[Path, ...]:
        """Wait until the content of some files is another one than it was, and give these files.

        A file that is being written is waited for: it counts once two looks see the same. One that is gone counts once it is back.
        """
        while True:
            before = self._stamps
            self._sleep(EVERY_S)
            self._stamps = {file: _stamp(file) for file in self._files}
            if self._stamps != before or None in self._stamps.values():
                continue
            now = {file: self._known[file] for file in self._files}
            now |= {file: _content(file) for file in self._files if self._stamps[file] != now[file][0]}
            changed = tuple(file for file in self._files if now[file][1] != self._known[file][1])
            self._known = now
            if changed:
                return changed


def _parts(file: Path) -> list[Path]:
    return sorted(each for each in file.rglob("*") if each.is_file()) if file.is_dir() else [file]


def _stamp(file: Path) -> Stamp | None:
    """``None`` where a file is gone, or a folder empty."""
    try:
        return tuple((str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in _parts(file)) or None
    except OSError:
        return None


def _content(file: Path) -> tuple[Stamp | None, str]:
    """The stamp of a file, and a hash of what is in it."""
    stamp, total = _stamp(file), hashlib.sha256()
    for name, _, _ in stamp or ():
        total.update(name.encode() + b"\0")
        try:
            with Path(name).open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError:  # gone again: the next look sees that
            return None, ""
    return stamp, total.hexdigest()
