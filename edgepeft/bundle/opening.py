"""Opening a file of a bundle: inside its folder, a regular file, of the size that the manifest says.

A bundle comes from elsewhere, so its files may be links out of the folder, pipes that never answer, or devices without an
end. What is opened here is none of these, and nothing was read of it yet.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import BundleError, CorruptBundleError

#: How many links inside the folder may stand between a name and its file.
_LINKS = 16
_FILE = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
#: A pipe without a writer would block; a link that appears after we looked is an error.
_SAFELY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NOCTTY", 0)
_FOLDER = _FILE | _SAFELY | getattr(os, "O_DIRECTORY", 0)
#: Windows opens no file relative to a folder's descriptor.
_RELATIVE = os.open in os.supports_dir_fd


@dataclass(frozen=True)
class Identity:
    """What tells a file and its state on disk apart from every other: it changes with each write, rename or replacement."""

    device: int
    inode: int
    bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity in what ``stat`` says."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def open_inside(root: Path, relative: str) -> int:
    """A descriptor of the regular file ``relative`` (``/`` between its parts) below ``root``, opened for reading.

    Links are followed as long as they stay below ``root``; ``root`` itself may be one.

    Raises:
        CorruptBundleError: The file is missing, is no regular file, or a link on the way leaves ``root``.
    """
    parts = list(PurePosixPath(relative).parts)
    for _ in range(_LINKS):
        found = _walk(root, parts) if _RELATIVE else _walk_by_path(root, parts)
        if isinstance(found, int):
            return found
        parts = found
    raise CorruptBundleError(f"{root / relative} is a link to a link to a link …; copy the bundle again without links")


def open_folder(root: Path, relative: str) -> int | None:
    """A descriptor of the folder that holds the file ``relative``; ``None`` on Windows, which has none."""
    if not _RELATIVE:
        return None
    folder = os.open(root, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0))
    for part in PurePosixPath(relative).parts[:-1]:
        parent = folder
        try:
            folder = os.open(part, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0), dir_fd=parent)
        finally:
            os.close(parent)
    return folder


def _walk(root: Path, parts: list[str]) -> int | list[str]:
    """The file's descriptor, opened a folder at a time, or the parts to walk instead where one of these is a link."""
    folder = _open_root(root)
    try:
        for place, part in enumerate(parts):
            here = "/".join([str(root), *parts[: place + 1]])
            last = place == len(parts) - 1
            try:
                status = os.stat(part, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    return _resolved(here, parts, place, os.readlink(part, dir_fd=folder))
                _check_kind(here, status.st_mode, last)
                opened = os.open(part, (_FILE | _SAFELY) if last else _FOLDER, dir_fd=folder)
            except OSError as error:
                raise _problem(here, error) from error
            if last:
                return _checked(opened, here)
            os.close(folder)
            folder = opened
    finally:
        os.close(folder)
    raise CorruptBundleError(f"{root}: the manifest names a file without a name")


def _walk_by_path(root: Path, parts: list[str]) -> int | list[str]:
    """:func:`_walk` where no file can be opened relative to a folder."""
    here = root
    for place, part in enumerate(parts):
        here = here / part
        last = place == len(parts) - 1
        try:
            status = here.lstat()
            if stat.S_ISLNK(status.st_mode) or _is_junction(status):
                return _resolved(str(here), parts, place, str(here.readlink()))
            _check_kind(str(here), status.st_mode, last)
            if last:
                return _checked(os.open(here, _FILE | _SAFELY), str(here))
        except OSError as error:
            raise _problem(str(here), error) from error
    raise CorruptBundleError(f"{root}: the manifest names a file without a name")


def _open_root(root: Path) -> int:
    try:
        return os.open(root, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        raise BundleError(f"{root} cannot be opened as a bundle folder: {error.strerror or error}") from error


def _is_junction(status: os.stat_result) -> bool:
    """Windows' other kind of link to a folder."""
    return bool(getattr(status, "st_reparse_tag", 0))


def _resolved(here: str, parts: list[str], place: int, target: str) -> list[str]:
    """The parts that a link stands for; its own folder was walked, so ``..`` leads where it says."""
    pure = PurePosixPath(target.replace("\\", "/") if os.name == "nt" else target)
    found = parts[:place]
    for part in pure.parts:
        if part == "..":
            if not found:
                break
            found.pop()
        else:
            found.append(part)
    else:
        if not pure.is_absolute() and ":" not in target:
            return found + parts[place + 1 :]
    raise CorruptBundleError(
        f"{here} is a link that leaves the bundle folder; copy the bundle again with the files that its links stand for"
    )


def _check_kind(here: str, mode: int, last: bool) -> None:
    if stat.S_ISREG(mode) if last else stat.S_ISDIR(mode):
        return
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "pipe",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    kind = kinds.get(stat.S_IFMT(mode), "special file")
    raise CorruptBundleError(
        f"{here} is a {kind} where the manifest names a {'file' if last else 'folder'}; copy the bundle again"
    )


def _checked(descriptor: int, here: str) -> int:
    """``descriptor``, if it is still what was looked at before it was opened."""
    try:
        _check_kind(here, os.fstat(descriptor).st_mode, last=True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _problem(here: str, error: OSError) -> BundleError:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return CorruptBundleError(f"{here} is missing from the bundle; copy the whole folder again")
    if error.errno == errno.ELOOP:
        return CorruptBundleError(f"{here} became a link while it was opened; open the bundle again")
    return BundleError(f"{here} cannot be read: {error.strerror or error}")
