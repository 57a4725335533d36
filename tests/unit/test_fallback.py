"""Second tries: when there are any, and which answer stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from edgepeft.runtime.generation.fallback import (
    TEMPERATURES,
    Confidence,
    compression_ratio,
    judges,
    kept_answer,
)
from edgepeft.runtime.generation.sampling import log_probability


@dataclass(frozen=True)
class Answer:
    """A try by its number."""

    number: int
    confidence: Confidence


def sure(mean_logprob: float = -0.3, ratio: float = 1.2, no_speech: float | None = 0.01) -> Confidence:
    return Confidence(0.0, mean_logprob, ratio, no_speech)


GOOD, LOOP, UNLIKELY = sure(), sure(ratio=9.0), sure(mean_logprob=-1.4)
SILENCE = sure(mean_logprob=-1.4, no_speech=0.9)


@pytest.mark.parametrize(
    ("tries", "kept"),
    [
        ([GOOD], 0),
        ([LOOP, GOOD], 1),
        ([UNLIKELY, LOOP, GOOD], 2),
        ([SILENCE], 0),  # nobody speaks: nothing to try
        ([LOOP, SILENCE], 1),
        ([sure(no_speech=0.9)], 0),  # likely text, whatever the token for silence says
        ([sure(mean_logprob=-1.4, no_speech=None), GOOD], 1),
        # None holds: the likeliest of those that are no loops, or of all
        ([LOOP, sure(-2.0), sure(-1.2), sure(-1.5), LOOP, sure(-3.0)], 2),
        ([sure(-0.5, 9.0), sure(-0.2, 5.0), *[sure(-0.9, 9.0)] * 4], 1),
    ],
)
def test_which_answer_stays(tries: list[Confidence], kept: int) -> None:
    asked = []

    def again(number: int) -> Answer:
        asked.append(number)
        return Answer(number, tries[number])

    assert kept_answer(Answer(0, tries[0]), again).number == kept
    assert asked == list(range(1, len(tries)))
    assert len(tries) <= 1 + len(TEMPERATURES)


@pytest.mark.parametrize(
    ("fallback", "judged"), [("off", []), ("loops", [LOOP]), ("all", [GOOD, LOOP, UNLIKELY, SILENCE])]
)
def test_which_answers_are_judged(fallback: str, judged: list[Confidence]) -> None:
    assert [each for each in (GOOD, LOOP, UNLIKELY, SILENCE) if judges(fallback, each)] == judged  # type: ignore[arg-type]


def test_a_loop_packs_well() -> None:
    assert compression_ratio("") == 0
    assert compression_ratio("How often should I take it, and how much of it at a time?") < 1.3
    assert compression_ratio(" Thank you." * 20) > 2.4


def test_log_probability_is_that_of_a_softmax() -> None:
    logits = np.array([1.0, -np.inf, 3.0, 2.0], np.float32)
    weights = np.exp(np.array([1.0, -np.inf, 3.0, 2.0]))
    for token in (0, 2, 3):
        assert log_probability(logits, token) == pytest.approx(np.log(weights[token] / weights.sum()), abs=1e-6)
    assert log_probability(np.array([1000.0, 0.0], np.float32), 0) == 0.0  # and does not overflow
    for broken in (np.nan, np.inf, -np.inf):  # the sampler refuses these, with the adapter's name
        assert np.isnan(log_probability(np.full(2, broken, np.float32), 0))
