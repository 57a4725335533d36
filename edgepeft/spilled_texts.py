"""Many texts in a temporary file, read back one at a time: a large data file does not have to fit into memory."""

from __future__ import annotations

import tempfile
import threading
import weakref
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from .scratch import room

#: Texts that are held in memory before the first is written: fewer are not worth a file.
IN_MEMORY = 20_000


class SpilledTexts(Sequence[str]):
    """Texts by position; each takes 8 bytes of memory, and the file goes with the object. Threads may share it.

    Args:
        texts: What to begin with.

    Raises:
        InputError: There is no room for temporary files.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        with room():
            self._file = tempfile.TemporaryFile(prefix="edgepeft-texts-")  # noqa: SIM115 # it lives as long as the texts
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", [0])
        self._lock = threading.Lock()
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add a text at the end."""
        raw = text.encode("utf-8", "surrogatepass")
        with self._lock, room():
            self._file.seek(self._ends[-1])
            self._file.write(raw)
        self._ends.append(self._ends[-1] + len(raw))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...

    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(self[each] for each in range(*place.indices(len(self))))
        wanted = place + len(self) if place < 0 else place
        if not 0 <= wanted < len(self):
            raise IndexError(f"text {place} of {len(self)}")
        begin, end = self._ends[wanted], self._ends[wanted + 1]
        with self._lock:
            self._file.seek(begin)
            return self._file.read(end - begin).decode("utf-8", "surrogatepass")


class TextsBuilder:
    """Collects texts: a tuple of a few, :class:`SpilledTexts` of more than :data:`IN_MEMORY`."""

    def __init__(self) -> None:
        self._few: list[str] = []
        self._many: SpilledTexts | None = None

    def append(self, text: str) -> None:
        """Add a text."""
        if self._many is not None:
            self._many.append(text)
        elif len(self._few) < IN_MEMORY:
            self._few.append(text)
        else:
            self._many = SpilledTexts((*self._few, text))
            self._few = []

    def __len__(self) -> int:
        return len(self._few if self._many is None else self._many)

    def done(self) -> Sequence[str]:
        """The texts."""
        return tuple(self._few) if self._many is None else self._many
