"""Whisper's timestamps: which tokens they are, where one may stand, and the parts of a window that they bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .tokens import Tokens

#: Frames of sound in one step of the encoder, which is one step of the timestamps.
FRAMES = 2
_ZERO = "<|0.00|>"


@dataclass(frozen=True)
class Timestamps:
    """A model's timestamp tokens: ``begin`` is 0.00 s, and each token after it, below ``end``, is ``stride`` samples later.

    ``latest_first`` is the last token that an answer may begin with, ``none`` the one that asks for no timestamps.
    """

    begin: int
    end: int
    stride: int
    latest_first: int | None
    none: int | None

    def __contains__(self, token: int) -> bool:
        return self.begin <= token < self.end

    def samples(self, token: int) -> int:
        """What a timestamp says, in samples behind the begin of its window."""
        return (token - self.begin) * self.stride


def find_timestamps(
    tokens: Tokens, vocabulary: int, none: int | None, latest_first: int | None, window: int, stride: int
) -> Timestamps | None:
    """The timestamp tokens of a vocabulary, or ``None`` where it has none.

    They begin where the tokenizer says ``<|0.00|>``. A tokenizer that does not know them (those of Whisper before 2023) is no
    matter: they then begin behind ``none``, as in transformers, if all that a window takes have a place there.

    Args:
        tokens: The tokenizer.
        vocabulary: How many tokens the model has.
        none: The token for "no timestamps", ``no_timestamps_token_id`` in ``generation_config.json``.
        latest_first: ``max_initial_timestamp_index`` there: how many steps into the window an answer may begin.
        window: Samples of a window.
        stride: Samples of one step.
    """
    begin = tokens.token_id(_ZERO)
    if begin is None:
        if none is None or none + 1 + window // stride >= vocabulary:
            return None
        begin = none + 1
    if begin >= vocabulary:
        return None
    return Timestamps(begin, vocabulary, stride, None if latest_first is None else begin + latest_first, none)


class TimestampRules:
    """Where timestamps may stand in the answers of a batch; logits of tokens that may not come become minus infinity.

    An answer begins with a timestamp, not later than ``latest_first``. Between parts timestamps stand in pairs, they never go
    back, and no part begins and ends at one. Where all timestamps together are likelier than any other token, one is taken.
    After OpenAI's ``ApplyTimestampRules`` (whisper/decoding.py) and ``WhisperTimeStampLogitsProcessor`` of transformers.

    Args:
        timestamps: The tokens.
        text_end: Tokens below it are text, which cannot follow the end of a part.
        rows: Answers in the batch.
    """

    def __init__(self, timestamps: Timestamps, text_end: int, rows: int) -> None:
        self._marks, self._text_end = timestamps, text_end
        # Whether the last token, and the one before it, was a timestamp; before the first token there is nothing to end.
        self._last, self._before = [True] * rows, [True] * rows
        self._latest: list[int | None] = [None] * rows

    def first(self, logits: np.ndarray) -> np.ndarray:
        """Logits ``[rows, vocabulary]`` of the first token of each answer, changed in place."""
        self._without_none(logits)
        logits[:, : self._marks.begin] = -np.inf
        if self._marks.latest_first is not None:
            logits[:, self._marks.latest_first + 1 :] = -np.inf
        return logits

    def after(self, tokens: Sequence[int], logits: np.ndarray) -> np.ndarray:
        """Logits ``[rows, vocabulary]`` behind one more token of each answer, changed in place."""
        self._without_none(logits)
        begin = self._marks.begin
        for row, token in enumerate(tokens):
            scores, mark = logits[row], token >= begin
            self._before[row], self._last[row] = self._last[row], mark
            opened = mark and self._before[row]
            if opened:
                scores[begin:] = -np.inf  # text, or the end
            elif mark:
                scores[: self._text_end] = -np.inf  # the begin of the next part, or the end
            self._latest[row] = latest = token if mark else self._latest[row]
            if latest is not None:
                scores[begin : latest + (0 if mark and not opened else 1)] = -np.inf
            if _log_sum(scores[begin:]) > scores[:begin].max():
                scores[:begin] = -np.inf
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._last, self._before = [self._last[row] for row in rows], [self._before[row] for row in rows]
        self._latest = [self._latest[row] for row in rows]

    def _without_none(self, logits: np.ndarray) -> None:
        if self._marks.none is not None:
            logits[:, self._marks.none] = -np.inf


def _log_sum(logits: np.ndarray) -> float:
    """The logarithm of the sum of exponentials, in float64."""
    top = float(logits.max())
    return top + math.log(float(np.exp(logits.astype(np.float64) - top).sum())) if math.isfinite(top) else -math.inf


@dataclass(frozen=True)
class Part:
    """What was written between timestamps, in samples behind the begin of the window; ``end`` ``None`` where none was written."""

    start: int
    end: int | None
    tokens: tuple[int, ...]
    text: str


def parts_of(
    tokens: Sequence[int], timestamps: Timestamps, decode: Callable[[Sequence[int]], str]
) -> tuple[list[Part], int | None]:
    """The parts that timestamps cut an answer into, and where one more begins of which nothing was written.

    The latter is how Whisper says that a window ends in the middle of speech: the next window begins there. Where an answer has
    one timestamp, which the rules made it begin with, it is one part without times.

    Args:
        tokens: The answer, without the token that ended it.
        timestamps: Which of its tokens are timestamps.
        decode: Gives the text of tokens.

    Example:
        >>> marks = Timestamps(begin=100, end=151, stride=320, latest_first=None, none=None)
        >>> parts, rest = parts_of([100, 1, 2, 110, 112, 3, 120, 120], marks, str)
        >>> [(part.start, part.end, part.tokens) for part in parts], rest
        ([(0, 3200, (1, 2)), (3840, 6400, (3,))], 6400)
    """
    found: list[Part] = []
    text: list[int] = []
    since, opened = 0, False
    for token in tokens:
        if token not in timestamps:
            text.append(token)
            continue
        at = timestamps.samples(token)
        if text:
            found.append(Part(since, at, tuple(text), decode(text)))
        since, opened, text = at, not text, []
    if text:
        alone = sum(token in timestamps for token in tokens) == 1
        return [*found, Part(0 if alone else since, None, tuple(text), decode(text))], None
    return found, since if opened and found else None
