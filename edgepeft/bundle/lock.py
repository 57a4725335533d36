"""One writer of a bundle at a time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import BundleError, BusyBundleError

#: Seconds that a writer waits for another one by default.
LOCK_TIMEOUT = 60.0


def real_path(target: str | Path) -> Path:
    """``target`` without links and with its name, ``.`` included; :class:`BundleError` where the current folder is gone."""
    try:
        return Path(target).resolve()
    except FileNotFoundError as error:
        raise BundleError(
            f"cannot tell where {target} is: the current folder was removed or replaced (a bundle is replaced when it is "
            'changed). Change into it again (cd "$PWD")'
        ) from error


class _RemovedError(Exception):
    """The lock file was removed by its last holder between our opening it and our locking it."""


@contextmanager
def locked(target: str | Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Keep other writers of the bundle at ``target`` out; wait ``timeout`` seconds for one that is at work.

    The lock is on ``.NAME.lock`` beside the bundle, so it survives the exchange of the folder, is no part of the bundle, and
    holds for everyone who can write there. The kernel drops it with the process. Raises :class:`BusyBundleError` after the
    wait and :class:`BundleError` where the folder around the bundle cannot be written.
    """
    import filelock

    target = real_path(target)
    path = target.with_name(f".{target.name}.lock")
    deadline = time.monotonic() + timeout

    def still_there(descriptor: int) -> None:
        try:
            same = sys.platform == "win32" or os.path.samestat(path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            same = False
        if not same:
            raise _RemovedError

    lock = filelock.FileLock(path, on_acquired=still_there)
    while True:
        try:
            lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
            break
        except _RemovedError:
            continue
        except filelock.Timeout as error:
            raise BusyBundleError(
                f"{target} is being changed by another process, and {timeout:g} s were not enough for it to end; nothing was "
                "changed. Run the command again when the other one is done, or wait longer (--lock-timeout SECONDS)"
            ) from error
        except (OSError, NotImplementedError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise BundleError(f"{target} was left as it was: it cannot be locked: {said} ({path})") from error
    try:
        yield
    finally:
        if sys.platform != "win32":  # there the library removes it
            path.unlink(missing_ok=True)  # before the release: who has it open sees that it is gone
        lock.release()


@contextmanager
def staying(target: str | Path) -> Iterator[None]:
    """Keep ``target`` from being exchanged while something that is no part of the bundle (a report) is written below it.

    Where the folder around it cannot be written there is no lock, and nobody can exchange the bundle either.
    """
    target = real_path(target)
    with locked(target) if os.access(target.parent, os.W_OK) else nullcontext():
        yield
