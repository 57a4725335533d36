"""Many texts or rows in a temporary file, read back one at a time: a large data file does not have to fit into memory."""

from __future__ import annotations

import tempfile
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar, overload

from .scratch import room

#: Texts that are held in memory before the first is written: fewer are not worth a file.
IN_MEMORY = 20_000

T = TypeVar("T")


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


class SpilledValues(Sequence[T]):
    """Values by position that are kept as texts: each is made anew where it is asked for.

    Args:
        texts: The values as texts.
        value: Makes a value of a text.
    """

    def __init__(self, texts: SpilledTexts, value: Callable[[str], T]) -> None:
        self._texts = texts
        self._value = value

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[T, ...]: ...

    def __getitem__(self, place: int | slice) -> T | tuple[T, ...]:
        if isinstance(place, slice):
            return tuple(self[each] for each in range(*place.indices(len(self))))
        return self._value(self._texts[place])


class ValuesBuilder(Generic[T]):
    """Collects values: a tuple of a few, :class:`SpilledValues` of more than ``in_memory``.

    Args:
        text: Makes a text of a value.
        value: Makes the value of its text again.
        in_memory: How many are held before the first is written.
    """

    def __init__(self, text: Callable[[T], str], value: Callable[[str], T], in_memory: int = IN_MEMORY) -> None:
        self._text, self._value, self._most = text, value, in_memory
        self._few: list[T] = []
        self._many: SpilledTexts | None = None

    def append(self, value: T) -> None:
        """Add a value."""
        if self._many is None and len(self._few) < self._most:
            self._few.append(value)
            return
        if self._many is None:
            self._many = SpilledTexts(map(self._text, self._few))
            self._few = []
        self._many.append(self._text(value))

    def __len__(self) -> int:
        return len(self._few if self._many is None else self._many)

    def done(self) -> Sequence[T]:
        """The values."""
        return tuple(self._few) if self._many is None else SpilledValues(self._many, self._value)


class TextsBuilder(ValuesBuilder[str]):
    """Collects texts: a tuple of a few, :class:`SpilledTexts` of more than :data:`IN_MEMORY`."""

    def __init__(self) -> None:
        super().__init__(str, str)

    def done(self) -> Sequence[str]:
        """The texts."""
        return super().done() if self._many is None else self._many
