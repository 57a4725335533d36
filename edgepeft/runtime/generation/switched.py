"""Decoding with a model whose rotary frequencies depend on how long the sequence is (LongRoPE: Phi-3.5, Phi-4-mini).

Up to a length the short frequencies rotate every token, beyond it the long ones do. So all keys in a cache belong to one side:
a prompt that ends beyond the switch is read with the long frequencies from its first token on, though it is read in pieces,
and a sequence that grows over the switch is read anew once, as transformers does it
(``Phi3ForCausalLM.prepare_inputs_for_generation``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .decoder import CHUNK, Decoder


class SwitchedDecoder:
    """One sequence; the calls are those of ``Decoder``.

    The graph chooses its frequencies by the largest position in a call. A piece that ends below the switch and must be read
    with the long ones is given a token more, masked out, at a position beyond it.

    Args:
        fresh: Makes a decoder with an empty cache.
        switch: The longest sequence, in tokens, of the short frequencies.
    """

    def __init__(self, fresh: Callable[[], Decoder], switch: int) -> None:
        self._fresh = fresh
        self._switch = switch
        self._decoder = fresh()
        self._tokens: list[int] = []
        #: Where in the cache each token lies: behind a piece there may be one that is masked out.
        self._places: list[int] = []
        self._long = False
        self.options: Any = None

    @property
    def rows(self) -> int:
        """One."""
        return 1

    @property
    def width(self) -> int:
        """Tokens in the cache."""
        return len(self._tokens)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read the row's tokens; the logits behind them, ``[1, vocabulary]``."""
        (tokens,) = prompts
        return self._read(list(tokens))

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed a token; the next logits ``[1, vocabulary]``."""
        return self._read(list(tokens))

    @property
    def _chunk(self) -> int:
        """How many tokens are read at a time."""
        return min(CHUNK, self._decoder.chunk)

    @property
    def most_at_once(self) -> int:
        """Tokens that :meth:`verify` takes: none that would bring a token before the switch to its other side."""
        return self._chunk if self._long else min(self._chunk, max(1, self._switch - len(self._tokens)))

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed several tokens; the logits behind each, ``[tokens, vocabulary]``, overwritten by the next call."""
        if len(tokens) == 1:
            return self._read(list(tokens))
        return self._piece(list(tokens), first=0)

    def rollback(self, count: int) -> None:
        """Forget the last ``count`` tokens."""
        if count:
            self.truncate(len(self._tokens) - count)

    def truncate(self, width: int) -> None:
        """Forget all but the first ``width`` tokens."""
        del self._tokens[width:]
        self._decoder.truncate(self._places[width - 1] + 1 if width else 0)
        del self._places[width:]
        self._decoder.count(width)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with this row."""
        self._decoder.keep(rows)

    def _read(self, tokens: list[int]) -> np.ndarray:
        long = len(self._tokens) + len(tokens) > self._switch
        if self._tokens and long != self._long:
            tokens = [*self._tokens, *tokens]
            self._decoder = self._fresh()
            self._tokens, self._places = [], []
        self._long = long
        logits = np.empty(0)
        for start in range(0, len(tokens), self._chunk):
            piece = tokens[start : start + self._chunk]
            logits = self._piece(piece, first=len(piece) - 1)
        return logits

    def _piece(self, tokens: list[int], first: int) -> np.ndarray:
        """Logits behind each token from the ``first`` on, ``[tokens - first, vocabulary]``."""
        self._decoder.options = self.options
        begin = self._decoder.width
        ids = np.array([tokens], np.int64)
        mask = np.ones_like(ids)
        positions = len(self._tokens) + np.arange(len(tokens))[None]
        if self._long and len(self._tokens) + len(tokens) <= self._switch:
            ids, mask = (np.pad(array, ((0, 0), (0, 1))) for array in (ids, mask))
            positions = np.append(positions, [[self._switch]], axis=1)
        logits = self._decoder.feed(ids, mask, first, positions)[0, : len(tokens) - first]
        self._tokens += tokens
        self._places += range(begin, begin + len(tokens))
        return logits


class EachAlone:
    """Several sequences, each with a decoder of its own; the calls are those of ``Decoder``."""

    def __init__(self, decoders: Sequence[SwitchedDecoder]) -> None:
        self._decoders = list(decoders)
        self.options: Any = None

    @property
    def rows(self) -> int:
        """Sequences in the batch."""
        return len(self._decoders)

    @property
    def width(self) -> int:
        """Tokens of the longest sequence."""
        return max(decoder.width for decoder in self._decoders)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read each row's tokens; the logits behind them, ``[rows, vocabulary]``."""
        return self._each(prompts)

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed one token for each row; the next logits ``[rows, vocabulary]``."""
        return self._each([[token] for token in tokens])

    @property
    def most_at_once(self) -> int:
        """Tokens that :meth:`verify` takes: as many as its decoder does, of the last row that goes on."""
        return self._decoders[0].most_at_once if self.rows == 1 else 1

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed several tokens of the one row; the logits behind each, ``[tokens, vocabulary]``."""
        (decoder,) = self._decoders
        decoder.options = self.options
        return decoder.verify(tokens)

    def rollback(self, count: int) -> None:
        """Forget the last ``count`` tokens of the one row."""
        for decoder in self._decoders:
            decoder.rollback(count)

    def truncate(self, width: int) -> None:
        """Forget all but the first ``width`` tokens of each row."""
        for decoder in self._decoders:
            decoder.truncate(width)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._decoders = [self._decoders[row] for row in rows]

    def _each(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        found = []
        for decoder, mine in zip(self._decoders, tokens, strict=True):
            decoder.options = self.options
            found.append(decoder.prefill([mine]).copy())
        return np.concatenate(found)
