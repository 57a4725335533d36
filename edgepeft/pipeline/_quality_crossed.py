"""What a fitted variant writes against fp32: language models on texts, encoder-decoders on answers of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import runtime as runtimes
from ..bundle import Bundle
from ..runtime.views import View
from ..validate.likelihood import log_softmax
from ._calibration_crossed import Answered, CrossedRuns
from ._calibration_runs import Runs
from ._quality import Quality, measure_quality, quality_from


def quality_of(bundle: Bundle, variant: str, runs: Runs) -> tuple[Quality, ...]:
    """The rows of the table for what was kept apart; adapters that were removed meanwhile are left out."""
    there = {None, *bundle.manifest.adapters}
    if isinstance(runs, CrossedRuns):
        answers = {name: each for name, each in (runs.answers or {}).items() if name in there}
        return measure_answers(bundle.path, variant, answers)
    return measure_quality(bundle.path, variant, {name: each for name, each in runs.held_out.items() if name in there})


def measure_answers(
    bundle: Path, variant: str, answers: Mapping[str | None, Sequence[Answered]]
) -> tuple[Quality, ...]:
    """Compare a variant of an encoder-decoder with fp32 over what fp32 writes, token by token.

    Args:
        bundle: The bundle's folder.
        variant: The variant to judge.
        answers: What was read and its answers, by adapter (``None``: the base).

    Returns:
        One row for each adapter, in the order of ``answers``.
    """
    with runtimes.open(bundle, variant="fp32") as whole, runtimes.open(bundle, variant=variant) as rounded:
        found = []
        for name, pairs in answers.items():
            views = [model.base if name is None else model.adapter(name) for model in (whole, rounded)]
            found.append(quality_from(name, np.array([_sums(views[0], views[1], pair) for pair in pairs])))
        return tuple(found)


def _sums(whole: View, rounded: View, pair: Answered) -> np.ndarray:
    sums = np.zeros(5)
    for token, one, two in zip(pair.answer, pair.steps(whole), pair.steps(rounded), strict=True):
        first, second = (log_softmax(logits) for logits in (one, two))
        possible = np.isfinite(first)  # a forced first token leaves no choice
        divergence = np.exp(first[possible]) @ (first[possible] - second[possible])
        sums += (1, -first[token], -second[token], divergence, one.argmax() == two.argmax())
    return sums
