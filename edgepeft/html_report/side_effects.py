"""What a training did beside its score, from its record: confidence, other domains, and each of several sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.gate import Cell, Table
from . import charts
from .figures import Chart

_CHANGE = ("before", "after", "change", "lower", "upper")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _cell(value: Any) -> Cell:
    """A number or text of a record as a table shows it; anything else is not shown."""
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else None


def _moved(before: Any, after: Any, change: Any) -> tuple[Cell, ...]:
    told = _mapping(change)
    found = map(_cell, (before, after, told.get("estimate"), told.get("lower"), told.get("upper")))
    # A record names numbers that are not finite: the ends of an interval that a single text has none of.
    return tuple(None if isinstance(value, str) else value for value in found)


def side_effect_tables(name: str, record: Mapping[str, Any]) -> tuple[Table, ...]:
    """Calibration and other domains in one table, several sources in another; those that the record has.

    Args:
        name: The adapter's.
        record: Of its training.
    """
    tables = []
    rows: list[tuple[Cell, ...]] = []
    if found := _mapping(record.get("calibration")):
        for what, key in (("calibration error", "error"), ("Brier score", "brier")):
            before, after, moved = (found.get(f"{key}_{end}") for end in ("before", "after", "change"))
            rows.append((what, _cell(found.get("rows")), *_moved(before, after, moved)))
        mended = (found.get("error_after"), found.get("error_mended"))
        temperature = found.get("temperature")
        at = f"{temperature:.2f}" if isinstance(temperature, int | float) else "?"
        named = f"calibration error, logits over {at}"
        rows.append((named, _cell(found.get("rows")), *map(_cell, mended), None, None, None))
    if found := _mapping(record.get("general")):
        gain = _mapping(found.get("gain"))
        metric = "perplexity" if gain.get("metric") == "nats a token" else str(gain.get("metric"))
        what = f"{metric.replace('_', ' ')} on {found.get('source')}"
        before, after = (_mapping(found.get(end)).get(metric) for end in ("before", "after"))
        what += " (change in nats a token)" if metric == "perplexity" else ""
        rows.append((what, _cell(found.get("rows")), *_moved(before, after, gain)))
    if rows:
        tables.append(Table(f"{name}: confidence, and other domains", ("what", "rows", *_CHANGE), tuple(rows)))
    sources = record.get("sources")
    if isinstance(sources, Sequence) and not isinstance(sources, str) and sources:
        each = [_mapping(source) for source in sources]
        tables.append(
            Table(
                f"{name}: sources",
                ("source", "rows", "share of draws", "held out", "metric", *_CHANGE),
                tuple(
                    (
                        *(_cell(s.get(key)) for key in ("source", "train_rows", "share", "validation_rows", "metric")),
                        *_moved(s.get("before"), s.get("after"), s.get("gain")),
                    )
                    for s in each
                ),
            )
        )
    return tuple(tables)


def reliability_chart(title: str, record: Mapping[str, Any]) -> Chart | None:
    """How often a classifier is right where it is so sure; on the line it could be believed. ``None`` without such a record."""
    bins = _mapping(record.get("calibration")).get("bins")
    if not isinstance(bins, Sequence) or isinstance(bins, str) or not bins:
        return None
    points = []
    for each in map(_mapping, bins):
        values = [each.get(key) for key in ("confidence", "right", "rows")]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return None
        points.append(tuple(map(float, values)))  # type: ignore[arg-type] # looked at above
    most = max(point[2] for point in points) or 1.0
    with charts.drawing(7) as (_, axes, out):
        axes.plot([0, 1], [0, 1], color=charts.MUTED, linewidth=0.8)
        for confidence, right, rows in points:
            axes.plot([confidence, confidence], [confidence, right], color=charts.colour(1), linewidth=1.2)
            axes.plot([confidence], [right], "o", color=charts.colour(0), markersize=3 + 8 * (rows / most) ** 0.5)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that is right")
    label = "; ".join(
        f"{right:.2f} right at a confidence of {sure:.2f} ({rows:.0f} rows)" for sure, right, rows in points
    )
    table = Table(title, ("confidence", "right", "rows"), tuple((c, r, int(n)) for c, r, n in points))
    caption = "After training. Below the line: surer than right. Larger dots: more rows."
    return Chart(title, out[0], label, table, caption)
