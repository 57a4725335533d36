"""Quality numbers with intervals: one registry entry a metric, paired comparisons, and the statistics behind them."""

from __future__ import annotations

from .comparing import Comparison, compare
from .measuring import Measured, Scored, measure, missing_extras
from .registry import METRICS, Kind, Metric, main_metrics

__all__ = [
    "METRICS",
    "Comparison",
    "Kind",
    "Measured",
    "Metric",
    "Scored",
    "compare",
    "main_metrics",
    "measure",
    "missing_extras",
]
