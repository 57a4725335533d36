"""How an adapter was trained: its learning curves, from the record that training writes beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..report.gate import Report, Table
from ..strict_json import read_object
from . import charts
from .figures import Chart
from .saved import SavedReport
from .sensitivity import sensitivity_chart
from .side_effects import reliability_chart, side_effect_tables

RECORD = "edgepeft_adapter.json"
#: Points of a curve that a page draws: more cannot be told apart, and make it large.
_MOST_POINTS = 400
#: Half-life of the smoothed loss, as a share of the steps.
_SMOOTHING = 0.03
_SCORES = (
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("mean_error", "mean error"),
    ("perplexity", "perplexity"),
)


def read_training(path: Path) -> SavedReport:
    """The record of a training as a report.

    Raises:
        InputError: The file is no such record.
    """
    record = read_object(path, advice="train the adapter again", finite=False)
    metrics = record.get("metrics")
    if not isinstance(metrics, Mapping):
        raise InputError(f"{path} is no record of a training: it has no metrics")
    created = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    name = path.absolute().parent.name
    tables = (_table(name, record), *side_effect_tables(name, record))
    return SavedReport(Report("train", f"Training of {name}", (), tables, (), record), path, created)


def _table(name: str, record: Mapping[str, Any]) -> Table:
    metrics = record["metrics"]
    arguments = record.get("arguments") or {}
    rows: list[tuple[str, Any]] = [
        ("base", record.get("base_model")),
        ("task", record.get("task")),
        ("method", arguments.get("chosen") or arguments.get("method")),
        ("trained parameters", record.get("trainable_parameters")),
        ("training rows", metrics.get("train_rows")),
        ("validation rows", metrics.get("validation_rows")),
        ("verdict", metrics.get("verdict")),
        ("seconds", metrics.get("seconds")),
    ]
    start = record.get("start")
    if isinstance(start, Mapping):
        rows.insert(2, ("started from", start.get("folder")))
    found = [
        (what, value if isinstance(value, int | float) else str(value)) for what, value in rows if value is not None
    ]
    return Table(f"Training of {name}", ("what", "which"), tuple(found))


def training_charts(saved: SavedReport) -> tuple[Chart, ...]:
    """The loss of each step, the scores of each epoch, confidence, and the sensitivity map, where the record has them."""
    metrics = saved.data["metrics"]
    name = saved.path.absolute().parent.name
    drawn = []
    if len(losses := numbers(metrics.get("step_loss"))) > 1:
        drawn.append(loss_chart(f"{name}: loss a step", losses))
    if chart := _score_chart(name, metrics):
        drawn.append(chart)
    if chart := reliability_chart(f"{name}: can its confidence be believed?", saved.data):
        drawn.append(chart)
    if chart := sensitivity_chart(f"{name}: what layers are worth", saved.data):
        drawn.append(chart)
    return tuple(drawn)


def numbers(values: Any) -> list[float]:
    """A list of numbers of a record; empty where it has none."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def loss_chart(title: str, losses: Sequence[float]) -> Chart:
    """The training loss of each step as dots, and smoothed as a line."""
    keep = 0.5 ** (1 / max(1.0, _SMOOTHING * len(losses)))
    smooth, state, weight = [], 0.0, 0.0
    for loss in losses:
        state, weight = keep * state + (1 - keep) * loss, keep * weight + (1 - keep)
        smooth.append(state / weight)
    every = -(-len(losses) // _MOST_POINTS)
    steps = list(range(1, len(losses) + 1, every))
    names = ["a step", "smoothed"]
    with charts.drawing(6, names=names) as (figure, axes, out):
        axes.plot(steps, losses[::every], ".", color=charts.MUTED, markersize=2, label=names[0])
        axes.plot(steps, smooth[::every], "-", color=charts.colour(0), linewidth=1.6, label=names[1])
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats")
        charts.legend(figure, axes, names)
    early = smooth[len(smooth) // 10]
    label = f"{len(losses)} steps; smoothed loss {early:.3g} early and {smooth[-1]:.3g} in the end"
    table = Table(title, ("step", "loss", "smoothed"), tuple(zip(steps, losses[::every], smooth[::every], strict=True)))
    return Chart(title, out[0], label, table)


def _score_chart(name: str, metrics: Mapping[str, Any]) -> Chart | None:
    """Validation scores over epochs, epoch 0 being the untrained adapter; the kept epoch is marked."""
    epochs = [metrics.get("before"), *(metrics.get("epoch_scores") or [])]
    if len(epochs) < 2 or not all(isinstance(each, Mapping) for each in epochs):
        return None
    series = {
        told: [each.get(key) for each in epochs]
        for key, told in _SCORES
        if all(isinstance(each.get(key), int | float) for each in epochs)
    }
    if not series:
        return None
    title, best = f"{name}: validation", metrics.get("best_epoch")
    with charts.drawing(6, names=list(series)) as (figure, axes, out):
        for place, (told, values) in enumerate(series.items()):
            axes.plot(range(len(values)), values, f"-{charts.marker(place)}", color=charts.colour(place), label=told)
        if isinstance(best, int):
            axes.axvline(best, color=charts.MUTED, linewidth=0.8)
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        charts.legend(figure, axes, list(series))
    label = "; ".join(f"{told}: " + ", ".join(f"{value:.3g}" for value in values) for told, values in series.items())
    rows = tuple((epoch, *(values[epoch] for values in series.values())) for epoch in range(len(epochs)))
    caption = "Epoch 0: before training." + (f" Kept: epoch {best}." if isinstance(best, int) else "")
    return Chart(title, out[0], label, Table(title, ("epoch", *series), rows), caption)
