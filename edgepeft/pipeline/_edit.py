"""``edit``: the one way in which a bundle that exists is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ..bundle import (
    LOCK_TIMEOUT,
    MANIFEST_NAME,
    Bundle,
    FileEntry,
    Manifest,
    dump_manifest,
    locked,
    read_bundle,
    replacing,
    rereading,
)
from ..bundle.transaction import put_back
from ..errors import AdapterMismatchError, BundleError
from ._manifest import write_manifest


class Edit:
    """A change of a bundle that others are kept out of; made by :func:`edit`.

    ``before`` is the bundle as it was when the lock was taken, and stays readable. ``folder`` is a copy to write into, made
    when it is first asked for. ``manifest`` is the one that was staged last.
    """

    def __init__(self, before: Bundle, stack: ExitStack, room: Path | None) -> None:
        self.before = before
        self._room = room
        self.manifest = before.manifest
        self._stack = stack
        self._known: dict[str, FileEntry] = dict(before.manifest.files)

    @cached_property
    def folder(self) -> Path:
        """The copy. Nothing is copied, and nothing takes the bundle's place, where it is never asked for."""
        return self._stack.enter_context(replacing(self.before.path, keep=True, lock_timeout=None, room=self._room))

    @property
    def after(self) -> Bundle:
        """The bundle as it is after the block."""
        return Bundle(path=self.before.path, manifest=self.manifest)

    def drop(self, files: Iterable[str]) -> None:
        """Remove files from the copy, and their hashes."""
        for file in files:
            (self.folder / file).unlink(missing_ok=True)
            self._known.pop(file, None)

    def stage(self, *, written: Iterable[str] = (), **changes: Any) -> Bundle:
        """Write the manifest with ``changes`` into the copy; the copy as a bundle, to be tried before it takes its place.

        Args:
            written: files of the copy that were written since the last call; only they and new ones are hashed.
            changes: fields of the manifest with their new values.

        Returns:
            The copy. Its path is for this block only.
        """
        for file in written:
            self._known.pop(file, None)
        self.manifest = write_manifest(self.folder, self.manifest.model_copy(update=changes), self._known)
        self._known = dict(self.manifest.files)
        return Bundle(path=self.folder, manifest=self.manifest)

    def refuse_another_base(self, read: Manifest, what: str) -> None:
        """Raise :class:`AdapterMismatchError` where the bundle has another base or other slots than when it was read."""
        now = self.manifest
        for part, then, found in (
            ("base", read.base.identity, now.base.identity),
            ("slot schema", read.slots.hash, now.slots.hash),
        ):
            if then != found:
                raise AdapterMismatchError(
                    f"{self.before.path} was exported again while {what}: its {part} was {then[:16]}… and is {found[:16]}…. "
                    "Nothing was changed; run the command again"
                )
        if (read.mode, read.base, read.inputs, read.max_length) != (now.mode, now.base, now.inputs, now.max_length):
            raise AdapterMismatchError(
                f"{self.before.path} was exported again with other settings while {what}. Nothing was changed; run the command "
                "again"
            )

    def refuse_other_files(self, read: Manifest, files: Iterable[str], what: str) -> None:
        """Raise :class:`BundleError` where a file is not the one that was read."""
        for file in files:
            if read.files[file] != self.manifest.files.get(file):
                raise BundleError(
                    f"{self.before.path}: {file} was changed while {what}. Nothing was changed here; run the command again"
                )


@contextmanager
def edit(bundle: str | Path, *, lock_timeout: float = LOCK_TIMEOUT, room: Path | None = None) -> Iterator[Edit]:
    """Change a bundle: lock it, read its manifest again, and put the changed copy in its place when the block ends well.

    If the block raises, or the process is killed, the bundle is as it was. What was read before the block may be out of date
    inside it: decide by ``Edit.manifest``.

    Args:
        bundle: the bundle's folder.
        lock_timeout: seconds to wait for another process that changes the bundle.
        room: a folder of :func:`edgepeft.bundle.scratch` for the copy, where the caller has one.

    Raises:
        BusyBundleError: the other process did not end in time.
        BundleError: there is no bundle, or it cannot be written.

    Example::

        with edit("out") as change:
            change.drop([name])
            change.stage(adapters=fewer)
        return change.after
    """
    path = read_bundle(bundle).path  # what is no bundle is said without a lock beside it
    with locked(path, lock_timeout):
        put_back(path)
        with ExitStack() as stack:
            yield Edit(read_bundle(path), stack, room)


@rereading
def copy_files(bundle: str | Path, folder: Path, choose: Callable[[Manifest], Iterable[str]]) -> Bundle:
    """Copy the files that ``choose`` names, and the manifest, into ``folder``: a part of a bundle that nobody changes.

    Raises :class:`CorruptBundleError` where a file does not have the manifest's hash; what is hashed is what is copied.
    """
    opened = read_bundle(bundle)
    files = tuple(dict.fromkeys(choose(opened.manifest)))
    opened.check(files)  # also that graphs name no weights beside those that are listed
    folder.mkdir(exist_ok=True)
    for file in files:
        opened.copy(file, folder / file)
    (folder / MANIFEST_NAME).write_text(dump_manifest(opened.manifest), encoding="utf-8")
    return Bundle(path=folder, manifest=opened.manifest)
