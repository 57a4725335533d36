"""Changing a bundle folder all at once or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BundleError

if sys.platform != "win32":
    import fcntl

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
        owner = os.open(staging, os.O_RDONLY)
        fcntl.flock(owner, fcntl.LOCK_EX)
        # Another process may have taken the sibling for a left one between its making and its locking.
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
def replacing(target: Path, *, keep: bool) -> Iterator[Path]:
    """A temporary sibling of ``target`` to write into; it takes ``target``'s place when the block ends well.

    With ``keep`` the sibling starts as a copy of ``target``. (Hard links would be quicker, but onnx refuses external data
    with several links, and a kill would leave them.) If the block raises, or the process is killed, ``target`` is as it
    was; what a killed process left beside it is removed by the next one. Raises :class:`BundleError` where the disk is
    full or the folder cannot be written.
    """
    target = target.resolve()
    staging: Path | None = None
    owner: int | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
        staging, owner = _stage(target)
        staging.chmod(0o755)
        if keep:
            shutil.copytree(target, staging, dirs_exist_ok=True)
        yield staging
        _sync(staging)
        replace_folder(staging, target)
    except OSError as error:
        what = "the disk is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else (error.strerror or str(error))
        raise BundleError(
            f"{target} was left as it was: {what} ({error.filename or staging or target.parent})"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if owner is not None:
            os.close(owner)


def replace_folder(staging: Path, target: Path) -> None:
    """Put the folder ``staging`` in the place of ``target``; both must be on one file system.

    What was at ``target`` is left at ``staging``, or gone; the caller removes it with the rest of its scratch.
    """
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        # Two renames: a kill between them leaves the old bundle whole under the name that `recover` looks for.
        aside = target.with_name(f".{target.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        staging.rename(target)
        shutil.rmtree(aside, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back a bundle that a kill between two renames left aside (file systems without an exchange)."""
    target = target.resolve()  # "." has no name, and of a link it is the folder behind it that is exchanged
    aside = target.with_name(f".{target.name}.old")
    if not target.exists() and aside.is_dir():
        aside.rename(target)
