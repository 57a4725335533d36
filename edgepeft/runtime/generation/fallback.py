"""Second tries: what a window's first, greedy answer is judged by, and which of several answers stays."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

#: Which windows are judged: those that repeat themselves, all, or none.
Fallback = Literal["loops", "all", "off"]
#: Of the second tries, one after the other (Radford et al. 2022, section 4.5).
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
#: Above it a text repeats itself; below it it is unlikely (in nats a token); above it a window holds no speech.
COMPRESSION_RATIO, MEAN_LOGPROB, NO_SPEECH = 2.4, -1.0, 0.6


@dataclass(frozen=True)
class Confidence:
    """How sure an answer is.

    ``temperature`` is that of the try it comes from, 0 for the first. ``mean_logprob`` is the mean log-probability of its tokens,
    the one that ended it included, in nats. ``compression_ratio`` is the size of its text over that when zlib has packed
    it. ``no_speech`` is the probability of the token for silence, ``None`` for a model without one.
    """

    temperature: float
    mean_logprob: float
    compression_ratio: float
    no_speech: float | None

    @property
    def repeats(self) -> bool:
        """Whether the text goes round in a loop."""
        return self.compression_ratio > COMPRESSION_RATIO

    @property
    def silent(self) -> bool:
        """Whether there was nothing to hear: the model says so, and what it wrote is unlikely."""
        return self.no_speech is not None and self.no_speech > NO_SPEECH and self.mean_logprob < MEAN_LOGPROB

    @property
    def fails(self) -> bool:
        """Whether another try is worth while."""
        return (self.repeats or self.mean_logprob < MEAN_LOGPROB) and not self.silent


class Judged(Protocol):
    """An answer with what it is judged by."""

    @property
    def confidence(self) -> Confidence:
        """How sure it is."""


Answer = TypeVar("Answer", bound=Judged)


def compression_ratio(text: str) -> float:
    """Bytes of a text in UTF-8 over its bytes when packed by zlib (``compression_ratio`` in OpenAI's whisper/utils.py)."""
    raw = text.strip().encode()
    return len(raw) / len(zlib.compress(raw))


def judges(fallback: Fallback, confidence: Confidence) -> bool:
    """Whether an answer of this confidence is judged at all: ``"all"`` are, or ``"loops"`` where they are one."""
    return fallback == "all" or (fallback == "loops" and confidence.repeats)


def kept_answer(first: Answer, again: Callable[[int], Answer]) -> Answer:
    """The answer that stays: the first one, or one at a higher temperature where that fails.

    The rules are those of ``decode_with_fallback`` in OpenAI's whisper/transcribe.py: temperatures rise until an answer does not
    fail. Where all fail, Whisper keeps the last; this keeps the likeliest, of those that do not repeat themselves if there are
    any, as faster-whisper does.

    Args:
        first: The greedy answer, with its confidence.
        again: Gives the answer at a temperature, by its number in :data:`TEMPERATURES` from 1 on.
    """
    answers = [first]
    while answers[-1].confidence.fails and len(answers) <= len(TEMPERATURES):
        answers.append(again(len(answers)))
    if not answers[-1].confidence.fails:
        return answers[-1]
    calm = [answer for answer in answers if not answer.confidence.repeats]
    return max(calm or answers, key=lambda answer: answer.confidence.mean_logprob)
