"""Which text files count for an adapter: those that it brings, in place of the bundle's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .manifest import AdapterEntry, FileEntry


@dataclass(frozen=True)
class OwnText:
    """An adapter's own text files: paths in the bundle by the names of those whose place they take.

    Two are equal where the files are, whatever their paths: what is made of one serves the other. It stays what it is when
    the bundle is read again.
    """

    #: Name and sha256 of each file.
    files: tuple[tuple[str, str], ...] = ()
    paths: tuple[tuple[str, str], ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnText) and self.files == other.files

    def __hash__(self) -> int:
        return hash(self.files)

    @classmethod
    def of(cls, entry: AdapterEntry, files: Mapping[str, FileEntry]) -> OwnText:
        """What ``entry`` says, with the hashes of the bundle's ``files``."""
        named = sorted((str(name), path) for name, path in entry.text.items())
        return cls(tuple((name, files[path].sha256) for name, path in named), tuple(named))

    def path(self, name: str) -> str:
        """Where the file called ``name`` is."""
        return dict(self.paths).get(name, name)


#: The base's text, and that of an adapter that brings none.
NO_TEXT = OwnText()
