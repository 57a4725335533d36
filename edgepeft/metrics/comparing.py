"""Variants compared on the same rows: how much a score moved, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .forms import Share
from .intervals import Interval, holm, mcnemar, paired_drop, percentile_interval, sign_p_value
from .measuring import Measured


@dataclass(frozen=True)
class Comparison:
    """A metric of ``variant`` minus that of ``reference``, on the same rows.

    ``p_value`` is McNemar's, exact, for shares of right rows, else that of the paired bootstrap; ``corrected`` is it after Holm's
    correction for all comparisons of the report.
    """

    adapter: str | None
    data: str
    metric: str
    title: str
    better: str
    variant: str
    reference: str
    change: Interval
    p_value: float
    corrected: float = 1.0

    @property
    def name(self) -> str:
        """How tables call the adapter."""
        return self.adapter or "(base)"

    def verdict(self, alpha: float = 0.05) -> str:
        """``worse``, ``better``, or ``no difference shown``, by the corrected p-value."""
        if self.corrected >= alpha or self.change.estimate == 0:
            return "no difference shown"
        return "better" if (self.change.estimate > 0) == (self.better == "higher") else "worse"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "adapter": self.adapter,
            "data": self.data,
            "metric": self.metric,
            "variant": self.variant,
            "reference": self.reference,
            "change": self.change.estimate,
            "lower": self.change.lower,
            "upper": self.change.upper,
            "p_value": self.p_value,
            "p_holm": self.corrected,
            "verdict": self.verdict(),
        }


def compare(measured: Sequence[Measured], reference: str) -> tuple[Comparison, ...]:
    """Every variant against the variant ``reference``, by adapter, data and metric, Holm-corrected over all of them.

    Rows are the same in all variants, in the same order: each metric's draws are of the same rows, so they pair.
    """
    by_key = {
        (m.scored.adapter, m.scored.data, m.scored.kind, m.metric.name): m
        for m in measured
        if m.scored.variant == reference
    }
    found = []
    for mine in measured:
        before = by_key.get((mine.scored.adapter, mine.scored.data, mine.scored.kind, mine.metric.name))
        if before is None or mine.scored.variant == reference:
            continue
        change, p_value = _paired(before, mine)
        found.append(
            Comparison(
                adapter=mine.scored.adapter,
                data=mine.scored.data,
                metric=mine.metric.name,
                title=mine.metric.title,
                better=mine.metric.better,
                variant=mine.scored.variant,
                reference=reference,
                change=change,
                p_value=p_value,
            )
        )
    corrected = holm([each.p_value for each in found])
    return tuple(replace(each, corrected=value) for each, value in zip(found, corrected, strict=True))


def _paired(before: Measured, after: Measured) -> tuple[Interval, float]:
    confidence = after.interval.confidence
    if isinstance(after.metric.form, Share):
        old, new = (after.metric.form.right(m.scored.labels, m.scored.outputs) for m in (before, after))
        drop = paired_drop(old.tolist(), new.tolist(), confidence)
        lost, won = int(np.sum(old & ~new)), int(np.sum(new & ~old))
        return Interval(-drop.estimate, -drop.upper, -drop.lower, confidence), mcnemar(lost, won)
    draws = after.draws - before.draws
    change = percentile_interval(after.value - before.value, draws, confidence)
    return change, sign_p_value(draws)
