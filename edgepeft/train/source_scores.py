"""What a training on several sources did for each of them: rows, how often it was drawn from, and scores before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .gain import Gain, likelihood_gain, paired_gain
from .mixing import Mixture
from .perplexity import Losses, change, summarize

if TYPE_CHECKING:
    from .encode import Tokens
    from .source import Split


@dataclass(frozen=True)
class SourceScore:
    """One of several sources.

    ``share`` is its part of the draws (of rows; of blocks where sequences are packed). ``before`` and ``after`` are ``metric`` on
    its own validation rows, ``gain`` the change with its interval (of perplexity in nats a token); ``None`` where it has none.
    """

    source: str
    train_rows: int
    share: float
    validation_rows: int
    metric: str
    before: float | None = None
    after: float | None = None
    gain: Gain | None = None


def classifier_scores(
    split: Split,
    held_sources: Sequence[int],
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    metric: str,
) -> tuple[SourceScore, ...]:
    """The sources of ``split``; empty where it has one only.

    Args:
        split: What was trained on.
        held_sources: The source of each row that was judged.
        before: Scores ``[rows]`` of these rows (:meth:`.Problem.row_scores`) before training.
        after: The same after it.
        metric: What their mean is.
    """
    if not split.sources:
        return ()
    shares = Mixture(split.train_sources, split.temperature, 0).shares
    of_row = np.asarray(held_sources)
    found = []
    for number, name in enumerate(split.sources):
        mine = np.flatnonzero(of_row == number)
        scored = (
            (float(before[mine].mean()), float(after[mine].mean()), paired_gain(before[mine], after[mine], metric))
            if len(mine)
            else (None, None, None)
        )
        rows = split.train_sources.count(number)
        found.append(SourceScore(name, rows, float(shares[number]), len(mine), metric, *scored))
    return tuple(found)


def language_scores(
    names: Sequence[str],
    shares: Sequence[float],
    train: Sequence[Tokens],
    held: Sequence[Tokens],
    before: Losses,
    after: Losses,
) -> tuple[SourceScore, ...]:
    """The sources ``names``, as :func:`classifier_scores`, from the losses of the groups of ``held``."""
    found = []
    for number, name in enumerate(names):
        groups = dict.fromkeys(each.group for each in held if each.source == number)
        rows = sum(each.source == number for each in train)
        told = SourceScore(name, rows, shares[number], sum(each.source == number for each in held), "perplexity")
        if groups:
            mine, theirs = ({group: losses[group] for group in groups} for losses in (before, after))
            moved = change(mine, theirs)
            told = SourceScore(
                name,
                rows,
                shares[number],
                told.validation_rows,
                told.metric,
                summarize(mine).perplexity,
                summarize(theirs).perplexity,
                likelihood_gain(moved.nll, moved.standard_error),
            )
        found.append(told)
    return tuple(found)
