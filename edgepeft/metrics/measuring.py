"""The metrics of rows that were answered, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from .intervals import Interval
from .registry import METRICS, Kind, Metric


@dataclass(frozen=True)
class Scored:
    """Rows of one adapter and variant: what they should be answered and what they were; :mod:`.scores` has the shapes.

    ``adapter`` is ``None`` for the base. ``data`` names the file.
    """

    adapter: str | None
    variant: str
    data: str
    kind: Kind
    labels: Any
    outputs: Any
    #: The names of classes, by position.
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True)
class Measured:
    """A metric of one adapter and variant, with its interval.

    ``draws`` are its resampled values ``[resamples]``; those of two runs of the same rows pair.
    """

    scored: Scored
    metric: Metric
    interval: Interval
    draws: np.ndarray = field(repr=False, compare=False)

    @property
    def value(self) -> float:
        """The score; NaN where the rows have none."""
        return self.interval.estimate

    @property
    def name(self) -> str:
        """How tables call the adapter."""
        return self.scored.adapter or "(base)"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "adapter": self.scored.adapter,
            "variant": self.scored.variant,
            "data": self.scored.data,
            "metric": self.metric.name,
            "title": self.metric.title,
            "better": self.metric.better,
            "value": self.value,
            "lower": self.interval.lower,
            "upper": self.interval.upper,
            "confidence": self.interval.confidence,
            "method": self.metric.method,
            "rows": len(self.scored),
        }


def installed(metric: Metric) -> bool:
    """Whether what computes the metric is installed."""
    return not metric.needs or find_spec(metric.needs) is not None


def measure(scored: Scored, *, confidence: float = 0.95, metrics: Sequence[Metric] = METRICS) -> tuple[Measured, ...]:
    """Every metric of ``metrics`` that fits the rows and whose package is installed, with its interval.

    Args:
        scored: Rows, their labels and what was answered.
        confidence: Of each interval, two-sided.
        metrics: Which ones.

    Returns:
        In the order of ``metrics``. A metric has the value NaN where the rows have none: numbers that are all the same, queries
        without a relevant text.
    """
    found = []
    for metric in metrics:
        if scored.kind not in metric.kinds or not installed(metric):
            continue
        if metric.against_fp32 and scored.variant == "fp32":
            continue
        draws = metric.form.draws(scored.labels, scored.outputs)
        interval = metric.form.interval(scored.labels, scored.outputs, confidence, draws)
        found.append(Measured(scored, metric, interval, draws))
    return tuple(found)


def missing_extras(kinds: Sequence[Kind]) -> tuple[str, ...]:
    """The titles of metrics for rows of these kinds that are left out, because what computes them is not installed."""
    return tuple(
        dict.fromkeys(metric.title for metric in METRICS if metric.kinds & set(kinds) and not installed(metric))
    )
