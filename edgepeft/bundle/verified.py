"""Files of a bundle that are what its manifest says, and stay so while they are used."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, get_args

from ..errors import BundleError, CorruptBundleError, InputError
from .known_files import KnownFiles, settled
from .manifest import FileEntry
from .opening import Identity, open_inside
from .reread import rereading

#: When a file that is opened is hashed: each time, when it changed since it was last hashed, or never.
Verify = Literal["always", "changed", "never"]

#: A folder may be exchanged, and the old one emptied, while a file is on its way to be opened. Some are first opened long after
#: the bundle was: then nobody further out reads again.
_open = rereading(open_inside)

_CHUNK = 1 << 20
_CHANGED = "was changed after the bundle was written:"
_AGAIN = {
    "has": "; copy the bundle again",
    _CHANGED: ". Copy the bundle again, or export it again if the change was meant.",
}
_DESCRIPTORS = "/proc/self/fd"
#: Bytes of a file that is read whole: far more than any tokenizer, and a manifest cannot ask for more.
READ_LIMIT = 1 << 28


def check_mode(verify: str) -> Verify:
    """``verify`` if it is a mode; :class:`InputError` that lists them otherwise."""
    for mode in get_args(Verify):
        if verify == mode:
            return mode
    raise InputError(f"verify must be one of {', '.join(get_args(Verify))}, found {verify!r}")


class VerifiedFile:
    """An open file of a bundle. It was what the manifest says when it was opened, and :meth:`check_unchanged` says if it is.

    A context manager: leaving it checks once more and closes the file.
    """

    def __init__(self, name: str, path: Path, descriptor: int, entry: FileEntry) -> None:
        self.name, self.path, self.entry = name, path, entry
        self.descriptor = descriptor
        self.identity = Identity.of(os.fstat(descriptor))
        #: Whether a write from now on would show in the identity.
        self.settled = settled(self.identity, time.time_ns())

    @property
    def load_path(self) -> str:
        """A path for libraries that open files themselves.

        On Linux it names the open file itself (``/proc/self/fd/N``), whatever took its place since. Elsewhere it is the
        file's own path, and :meth:`check_unchanged` tells whether something else took its place meanwhile.
        """
        return descriptor_path(self.descriptor) or str(self.path)

    def read(self) -> bytes:
        """The bytes, at most as many as the manifest says."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        with open(self.descriptor, "rb", closefd=False) as file:
            return file.read(self.entry.bytes)

    def copy_to(self, target: BinaryIO) -> None:
        """Write the bytes into ``target``."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        with open(self.descriptor, "rb", buffering=0, closefd=False) as file:
            shutil.copyfileobj(file, target, _CHUNK)

    def sha256(self) -> str:
        """The hash of the bytes, read in pieces: a map would crash where the file is cut short meanwhile."""
        digest, buffer, left = hashlib.sha256(), memoryview(bytearray(_CHUNK)), self.entry.bytes
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        with open(self.descriptor, "rb", buffering=0, closefd=False) as file:
            while left and (count := file.readinto(buffer[: min(left, _CHUNK)])):
                digest.update(buffer[:count])
                left -= count
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise :class:`CorruptBundleError` where the file was written to, or another took its place, since it was opened."""
        now = Identity.of(os.fstat(self.descriptor))
        renamed = replace(now, ctime_ns=self.identity.ctime_ns) == self.identity
        # Renaming or removing a file sets the same time as writing to it; its content tells.
        same = now == self.identity or (renamed and self.sha256() == self.entry.sha256)
        if same and descriptor_path(self.descriptor) is None:
            same = self.path.exists() and Identity.of(self.path.stat()) == now
        if not same:
            raise CorruptBundleError(f"{self.path} was changed while it was opened; open the bundle again")

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> VerifiedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.check_unchanged()  # what a library made of a file that changed under it is not its fault
        finally:
            self.close()


def descriptor_path(descriptor: int) -> str | None:
    """A path that names an open file or folder itself; ``None`` where the system has none."""
    return f"{_DESCRIPTORS}/{descriptor}" if _names_descriptors() else None


@cache
def _names_descriptors() -> bool:
    """Whether this is Linux with ``/proc`` mounted, which a container may lack."""
    return sys.platform == "linux" and Path(_DESCRIPTORS).is_dir()


@dataclass
class BundleFiles:
    """Opens the files that a manifest lists, and hashes them as ``verify`` says.

    Whatever the mode: links out of the folder, pipes, devices and wrong sizes are refused, and a file that is opened a second
    time is what it was the first time, or what the manifest says.
    """

    root: Path
    entries: Mapping[str, FileEntry]
    verify: Verify = "changed"
    known: KnownFiles = field(default_factory=KnownFiles)
    _opened: dict[str, Identity] = field(default_factory=dict)
    _hashed: dict[Identity, str] = field(default_factory=dict)

    def open(self, name: str) -> VerifiedFile:
        """A file, verified.

        Raises:
            BundleError: The manifest does not list it, or it cannot be read.
            CorruptBundleError: It is missing, no regular file, or not what the manifest says.
        """
        file = self.open_unverified(name)
        try:
            if self.to_be_hashed(file):
                self.check_hash(file)
            self.note_opened(file)
        except BaseException:
            file.close()
            raise
        return file

    def open_unverified(self, name: str) -> VerifiedFile:
        """A regular file inside the folder, of the right size, to be hashed by the caller."""
        entry = self.entries.get(name)
        if entry is None:
            raise BundleError(
                f"{self.root}: {name} is not listed in the manifest, so it is not used; export the bundle again"
            )
        path = self.root / name
        file = VerifiedFile(name, path, _open(self.root, name), entry)
        if file.identity.bytes != entry.bytes:
            file.close()
            raise self._differs(file, f"{file.identity.bytes} bytes", f"{entry.bytes}", "has")
        return file

    def to_be_hashed(self, file: VerifiedFile) -> bool:
        """Whether the mode, and what is known of the file, ask for its hash."""
        wanted, identity = file.entry.sha256, file.identity
        if self._hashed.get(identity) == wanted:
            return False
        if self.verify == "always":
            return True
        if self.verify == "changed":
            return self.known.hash_of(identity) != wanted
        return self._opened.get(file.name, identity) != identity

    def check_hash(self, file: VerifiedFile, content: bytes | None = None) -> None:
        """Hash a file, or what was read of it; :class:`CorruptBundleError` where it is not what the manifest says."""
        found = file.sha256() if content is None else hashlib.sha256(content).hexdigest()
        if found != file.entry.sha256:
            raise self._differs(file, f"sha256 {found[:16]}…", f"{file.entry.sha256[:16]}…", _CHANGED)
        file.check_unchanged()
        if file.settled:
            self._hashed[file.identity] = found
            self.known.remember(file.identity, found)

    def look(self, name: str) -> None:
        """Take a file as what the bundle was opened with, without reading it: it is regular and has its size.

        It is hashed when it is first opened, where the mode asks for that. Raises as :meth:`open` does.
        """
        file = self.open_unverified(name)
        self.note_opened(file)
        file.close()

    def take_over(self, other: BundleFiles) -> None:
        """Take what ``other``, over the same folder, knows of the files that are the same in both manifests."""
        same = {name for name, entry in self.entries.items() if other.entries.get(name) == entry}
        self._opened.update({name: seen for name, seen in other._opened.items() if name in same})
        self._hashed.update(other._hashed)

    def note_opened(self, file: VerifiedFile) -> None:
        """Take a file as what the bundle was opened with: whatever is found under its name later must hold the same."""
        self._opened.setdefault(file.name, file.identity)

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """The verified bytes of a file of at most ``limit`` bytes: what was hashed is what is returned."""
        with self.open_unverified(name) as file:
            if file.entry.bytes > limit:
                raise BundleError(f"{file.path} has {file.entry.bytes} bytes; at most {limit} are read at once")
            content = file.read()
            if self.to_be_hashed(file):
                self.check_hash(file, content)
            self.note_opened(file)
        self.known.save()
        return content

    def _differs(self, file: VerifiedFile, found: str, expected: str, what: str) -> CorruptBundleError:
        if self._opened.get(file.name, file.identity) != file.identity:
            return CorruptBundleError(
                f"{file.path} was changed since the bundle was opened: {found}, the manifest then said {expected}. Open the "
                "bundle again."
            )
        return CorruptBundleError(f"{file.path} {what} {found}, the manifest says {expected}{_AGAIN[what]}")
