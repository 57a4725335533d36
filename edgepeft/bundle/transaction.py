"""Changing a bundle folder all at once or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import BundleError
from .lock import LOCK_TIMEOUT, locked, real_path

if sys.platform != "win32":
    import fcntl

#: What NumPy says of an array that the system wrote a part of, with no error's number.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step where the kernel can (Linux ``renameat2``); whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(result == 0)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _stage(target: Path) -> tuple[Path, int | None]:
    """A new temporary sibling, and the descriptor whose lock says that its owner lives.

    The kernel drops the lock with the process, however it ends, so a sibling without one was left by a kill.
    """
    while True:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        if sys.platform == "win32":  # no such locks: what a killed process left behind stays
            return staging, None
        # Another process may take the sibling for a left one between its making and its locking.
        try:
            owner = os.open(staging, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(owner, fcntl.LOCK_EX)
        if staging.is_dir() and os.path.samestat(staging.stat(), os.fstat(owner)):
            return staging, owner
        os.close(owner)


def _clean(target: Path) -> None:
    """Remove the siblings that killed processes left; those of living ones are locked and stay."""
    prefix, suffix = f".{target.name}.", ".tmp"
    if sys.platform == "win32":
        return
    for path in target.parent.iterdir():
        name = path.name
        middle = name[len(prefix) : -len(suffix)]
        ours = name.startswith(prefix) and name.endswith(suffix) and middle and "." not in middle
        if not ours or path.is_symlink() or not path.is_dir():
            continue
        try:
            owner = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # its owner is at work, or this file system has no locks
        finally:
            os.close(owner)


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A new hidden folder beside ``target`` that is removed when the block ends, or by the next one after a kill."""
    target = real_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clean(target)
    folder, owner = _stage(target)
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if owner is not None:
            os.close(owner)


@contextmanager
def left_as_it_was(target: Path) -> Iterator[None]:
    """Say what the system refused in a block that writes beside ``target``, as :class:`BundleError`."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{target} was left as it was: {_refused(error)} ({error.filename or target.parent})"
        ) from error


def _refused(error: OSError) -> str:
    """What the system refused, in words."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "the disk is full"
    if error.errno is None and _SHORT_WRITE.fullmatch(str(error)):
        return "the system took fewer bytes than it was given: the disk is full, or a limit of the sizes of files is reached"
    return error.strerror or str(error)


@contextmanager
def _inside(room: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=room))
    folder.chmod(0o755)
    yield folder  # what is left of it goes with the room


@contextmanager
def replacing(
    target: Path, *, keep: bool, lock_timeout: float | None = LOCK_TIMEOUT, room: Path | None = None
) -> Iterator[Path]:
    """A temporary sibling of ``target`` to write into; it takes ``target``'s place when the block ends well.

    With ``keep`` the sibling starts as a copy of ``target``, and no other process changes ``target`` during the block.
    (Hard links would be quicker, but onnx refuses external data with several links, and a kill would leave them.) Without,
    others are kept out only while the sibling takes its place. ``lock_timeout`` is how many seconds to wait for another
    writer; ``None`` says that the caller holds the lock. ``room`` is a :func:`scratch` folder of the caller's to make the sibling
    in. If the block raises, or the process is killed, ``target`` is as it
    was; what a killed process left beside it is removed by the next one.

    Raises:
        BusyBundleError: another writer did not end in time.
        BundleError: the disk is full, or the folder cannot be written.
    """
    target = real_path(target)
    alone = nullcontext() if lock_timeout is None else locked(target, lock_timeout)
    before, after = (alone, nullcontext()) if keep else (nullcontext(), alone)
    with left_as_it_was(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with before, scratch(target) if room is None else _inside(room) as staging:
            if keep:
                shutil.copytree(target, staging, dirs_exist_ok=True)
            yield staging
            _sync(staging)
            with after:
                replace_folder(staging, target)


def replace_folder(staging: Path, target: Path) -> None:
    """Put the folder ``staging`` in the place of ``target``; both must be on one file system.

    What was at ``target`` is left at ``staging``, or gone; the caller removes it with the rest of its scratch.
    """
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        # Two renames: a kill between them leaves the old bundle whole under the name that `recover` looks for.
        aside = _aside(target)
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        try:
            staging.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def put_back(target: Path) -> None:
    """What :func:`recover` does, for a caller that holds the lock of ``target``."""
    target = real_path(target)
    aside = _aside(target)
    if not target.exists() and aside.is_dir():
        aside.rename(target)


def recover(target: Path) -> None:
    """Put back a bundle that a kill between two renames left aside (file systems without an exchange).

    A writer that lives holds the lock and puts its new folder there itself: it is waited for.
    """
    target = real_path(target)
    if not target.exists() and _aside(target).is_dir():
        with locked(target):
            put_back(target)
