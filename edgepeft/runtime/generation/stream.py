"""A text as it is generated, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from ...errors import InputError
from .loop import Generation, Run


class TextStream:
    """Pieces of text as they are generated; iterate it once. No piece splits a character or holds a stop string.

    ``cancel`` ends it, from any thread; ``result`` is there when it has ended.
    """

    def __init__(self, run: Run, ended: Callable[[Generation, bool], None] = lambda result, completed: None) -> None:
        self._run = run
        self._ended = ended
        self._result: Generation | None = None
        self._begun = False
        self._pieces = self._iterate()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def _iterate(self) -> Generator[str, None, None]:
        self._begun = True
        completed = False
        try:
            for _, piece in self._run:
                yield piece
            completed = True
        finally:
            self._end(completed)  # also where the reader leaves early, with what was generated until then

    def _end(self, completed: bool) -> None:
        (self._result,) = self._run.results()
        self._ended(self._result, completed)

    def cancel(self) -> None:
        """Stop after the token under way; what was generated stays."""
        self._run.cancel()

    def close(self) -> None:
        """Stop here and give up the rest."""
        self._pieces.close()
        if not self._begun:
            self._begun = True
            self._end(completed=False)

    @property
    def result(self) -> Generation:
        """What was generated; :class:`InputError` before the stream has ended."""
        if self._result is None:
            raise InputError("the stream has not ended; read it to its end, or cancel it and read the rest")
        return self._result
