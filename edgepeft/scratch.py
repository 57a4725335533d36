"""A folder for temporary files, and what to do where there is no room for one."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import InputError

#: What the system says where nothing more can be written.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT}


@contextmanager
def room() -> Iterator[None]:
    """Say where temporary files are, and to set ``TMPDIR``, where the block cannot write one.

    Raises:
        InputError: The disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        ours = error.filename is None or str(error.filename).startswith(_root())
        if error.errno not in _FULL or not ours:
            raise
        raise InputError(
            f"temporary files have no room in {_root() or 'any folder'}: {error.strerror}. Free some space, or set TMPDIR to a "
            "folder with more that can be written to"
        ) from error


def _root() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # none of the usual folders can be written to
        return ""


@contextmanager
def scratch_folder(purpose: str) -> Iterator[str]:
    """The path of a new folder for temporary files, removed when the block ends; :class:`InputError` as :func:`room`.

    ``purpose`` becomes a part of its name, so that who finds it knows whose it is.
    """
    with room(), tempfile.TemporaryDirectory(prefix=f"edgepeft-{purpose}-") as folder:
        yield folder
