"""Which charts and tables a page shows, and in what order: one section for each question that a reader has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..bench.result import BenchResult, case_key
from ..bench.stats import wilson
from ..bundle import Bundle
from ..errors import InputError
from ..report.gate import Table, Verdict
from ..units import MB
from . import explanations
from .bits import bits_charts
from .figures import (
    Chart,
    Choice,
    Interval,
    Latency,
    budgets_of,
    front_chart,
    history_chart,
    latency_chart,
    ratio_chart,
    size_chart,
)
from .saved import SavedReport
from .training import training_charts


@dataclass(frozen=True)
class Section:
    """A heading, what is shown below it, and how its numbers were made."""

    anchor: str
    title: str
    method: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()


def sections(reports: Sequence[SavedReport], bundles: Sequence[Bundle]) -> list[Section]:
    """The sections of a page, those with nothing to show left out.

    Args:
        reports: Every report, oldest first. What is shown of a kind is its latest; the history has the others.
        bundles: The bundles whose sizes and provenance are shown.
    """
    found = [
        *(baseline_section(saved) for saved in _latest(reports, "check")),
        *(latency_section(saved) for saved in _latest(reports, "bench")),
        quality_section(_latest(reports, "validate"), bundles, _latest(reports, "bench")),
        *(training_section(saved) for saved in _latest(reports, "train")),
        *(search_section(saved) for saved in _latest(reports, "search")),
        *(other_section(saved) for saved in _others(reports)),
        size_section(bundles),
        bits_section(bundles),
        history_section([saved for saved in reports if saved.kind == "bench"]),
    ]
    return [section for section in found if section is not None and (section.charts or section.tables)]


def _latest(reports: Sequence[SavedReport], kind: str) -> list[SavedReport]:
    """The newest report of a kind for each title: one for each bundle and target."""
    return list({saved.report.title: saved for saved in reports if saved.kind == kind}.values())


def _others(reports: Sequence[SavedReport]) -> list[SavedReport]:
    shown = {"check", "bench", "validate", "train", "search"}
    return list({saved.report.title: saved for saved in reports if saved.kind not in shown}.values())


def _records(saved: SavedReport, key: str) -> list[dict[str, Any]]:
    """A list of objects in a report's data; empty where the report has none (an interrupted run)."""
    rows = saved.data.get(key) or []
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"report {saved.path}: data.{key} is no list of objects; write it again")
    return list(rows)


def baseline_section(saved: SavedReport) -> Section:
    """What changed against the baseline: latency ratios and accuracy, each with its interval and margin."""
    rules = saved.data.get("rules") or {}
    limit = 1 + rules["latency_tolerance"] if "latency_tolerance" in rules else None
    ratios = [
        Interval(case_key(c["variant"], c["adapter"], c["shape"]), c["ratio"], c["lower"], c["upper"], Verdict(c["verdict"]), limit)
        for c in _records(saved, "cases")
        if c.get("lower") is not None and c.get("upper") is not None
    ]  # fmt: skip
    drops = [
        Interval(f"{a['variant']}/{a['adapter'] or '(base)'}", a["drop"], a["drop_lower"], a["drop_upper"])
        for a in _records(saved, "accuracy")
        if a.get("drop") is not None and a.get("drop_lower") is not None
    ]
    charts = []
    if ratios:
        charts.append(ratio_chart("Latency over the baseline", ratios, "times the baseline (below 1: faster)"))
    if drops:
        charts.append(ratio_chart("Accuracy lost against the baseline", drops, "share of rows (below 0: better)"))
    how = explanations.PAIRED if saved.data.get("paired", True) else explanations.AGAINST_SAVED
    return Section(
        "baseline",
        f"Against the baseline: {saved.report.title}",
        f"{how} {explanations.JUDGED}",
        tuple(charts),
        _plain(saved, covered=("Latency against", "Sizes")),
    )


def latency_section(saved: SavedReport) -> Section:
    """How long a run takes, process by process, against the target's budgets."""
    budgets = budgets_of(saved.report.gates)
    by_shape: dict[str, list[Latency]] = {}
    for c in _records(saved, "cases"):
        key = case_key(c["variant"], c["adapter"], c["shape"])
        name = f"{c['variant']}/{c['adapter'] or '(base)'}"
        found = Latency(name, tuple(c["process_p50_ms"]), c["p50_ms"], c["p95_ms"], budgets.get(key))
        by_shape.setdefault(c["shape"], []).append(found)
    return Section(
        "latency",
        f"Latency: {saved.report.title}",
        explanations.LATENCY,
        tuple(latency_chart(f"Steady latency, {shape}", rows) for shape, rows in by_shape.items()),
        _plain(saved, covered=("Steady latency", "Sizes")),
    )


def quality_section(
    validations: Sequence[SavedReport], bundles: Sequence[Bundle], benches: Sequence[SavedReport]
) -> Section | None:
    """Accuracy of each adapter and variant, alone and against what it costs in MB and ms."""
    if not validations:
        return None
    rows = [row for saved in validations for row in _records(saved, "accuracy") if row.get("accuracy") is not None]
    points = []
    for row in rows:
        bounds = wilson(round(row["accuracy"] * row["rows"]), row["rows"])
        points.append((row["variant"], row["adapter"] or "(base)", bounds))
    sizes = {name: size for bundle in bundles for name, size in deployed_mb(bundle).items()}
    times = {
        (c["variant"], c["adapter"] or "(base)"): c["p50_ms"]
        for saved in benches
        for c in reversed(_records(saved, "cases"))  # the first shape of a case stands
    }
    by_size = [Choice(v, a, sizes[v], b.estimate, b.lower, b.upper) for v, a, b in points if v in sizes]
    by_time = [Choice(v, a, times[v, a], b.estimate, b.lower, b.upper) for v, a, b in points if (v, a) in times]
    charts = []
    if by_size:
        charts.append(front_chart("Accuracy against size", by_size, "MB on a device"))
    if by_time:
        charts.append(front_chart("Accuracy against latency", by_time, "p50 ms, smallest shape"))
    for key, title in (("drop", "Lost out of domain"), ("forgetting", "Taken from the base")):
        if lost := _losses(validations, key):
            charts.append(ratio_chart(title, lost, "points"))
    return Section(
        "quality",
        "Quality: does it do on the device what was trained?",
        explanations.QUALITY,
        tuple(charts),
        tuple(table for saved in validations for table in _plain(saved)),
    )


def _losses(validations: Sequence[SavedReport], key: str) -> list[Interval]:
    """What adapters lose on rows from elsewhere, in points, where that was measured."""
    return [
        Interval(
            f"{row['adapter']} {row['variant']}, {row['data']}",
            *(100 * row[key][end] for end in ("value", "lower", "upper")),
        )
        for saved in validations
        for row in _records(saved, "generalization")
        if row["domain"] == "out" and row.get(key) is not None and None not in row[key].values()
    ]


def training_section(saved: SavedReport) -> Section:
    """How an adapter learnt."""
    return Section("training", saved.report.title, explanations.TRAINING, training_charts(saved), saved.report.tables)


def search_section(saved: SavedReport) -> Section:
    """What the trials of a search reached, against what they cost."""
    done = [row for row in _records(saved, "trials") if row.get("accuracy") is not None]
    charts = []
    for key, axis in (("mb", "MB on a device"), ("p50_ms", "p50 ms")):
        points = [
            Choice(
                f"{row['number']}" if row["on_front"] else "",
                str(row["values"].get("variant", "fp32")),
                row[key],
                row["accuracy"],
                row["lower"],
                row["upper"],
            )
            for row in done
        ]
        if points:
            charts.append(front_chart(f"Accuracy against {axis}", points, axis))
    return Section("search", saved.report.title, explanations.SEARCH, tuple(charts), saved.report.tables)


def other_section(saved: SavedReport) -> Section:
    """A report of any other kind, as it was written."""
    return Section(
        f"report-{saved.path.stem}",
        saved.report.title,
        f"Written by edgepeft {saved.kind}; its documentation says how the numbers are made.",
        tables=saved.report.tables,
    )


def size_section(bundles: Sequence[Bundle]) -> Section | None:
    """What a device stores for each variant, by part."""
    charts = tuple(
        size_chart(f"What one device stores: {bundle.path.name}", device_parts(bundle)) for bundle in bundles
    )
    if not charts:
        return None
    return Section(
        "sizes",
        "Sizes",
        explanations.SIZES,
        charts,
    )


def bits_section(bundles: Sequence[Bundle]) -> Section | None:
    """What other sizes of a variant could have reached, where its bits were chosen for a goal."""
    drawn = tuple(chart for bundle in bundles for chart in bits_charts(bundle))
    return Section("bits", "Bits", explanations.BITS, drawn) if drawn else None


def device_parts(bundle: Bundle) -> dict[str, dict[str, float]]:
    """MB by part for each variant: the base, all adapters, and the rest (tokenizer, configuration)."""
    manifest = bundle.manifest
    found = {}
    for name, whole in deployed_mb(bundle).items():
        base = sum(manifest.files[file].bytes for file in manifest.variants[name].files()) / MB
        adapters = (
            sum(
                manifest.files[file].bytes
                for entry in manifest.adapters.values()
                for form in (entry, entry.on(name))
                for file in dict.fromkeys((form.onnx_adapter, form.onnx))
                if form is entry or name in entry.refits
            )
            / MB
        )
        found[name] = {"base": base, f"{len(manifest.adapters)} adapters, both forms": adapters}
        found[name]["tokenizer and configuration"] = max(0.0, whole - base - adapters)
    return found


def deployed_mb(bundle: Bundle) -> dict[str, float]:
    """MB that a device with one variant stores, by variant."""
    manifest = bundle.manifest
    return {
        name: sum(manifest.files[file].bytes for file in manifest.deployed(name)) / MB for name in manifest.variants
    }


def history_section(benches: Sequence[SavedReport]) -> Section | None:
    """Latency over several bench reports; only runs of one host are joined by lines."""
    by_host: dict[str, list[tuple[SavedReport, BenchResult]]] = {}
    for saved in benches:
        if "partial" in saved.data or "error" in saved.data:  # a run that did not end is no point of a line
            continue
        result = BenchResult.model_validate(dict(saved.data))
        kernels = ", with kernels" if result.host.kernels else ""
        by_host.setdefault(
            f"{result.host.cpu}, {result.host.threads} thread{'s' if result.host.threads != 1 else ''}{kernels}", []
        ).append((saved, result))
    charts = []
    for host, runs in by_host.items():
        if len(runs) < 2:
            continue
        keys = list(dict.fromkeys(case.key for _, result in runs for case in result.cases))
        series: dict[str, list[Latency | None]] = {key: [] for key in keys}
        for _, result in runs:
            cases = {case.key: case for case in result.cases}
            for key in keys:
                case = cases.get(key)
                series[key].append(None if case is None else Latency(key, case.process_p50_ms, case.p50_ms))
        names = [f"{saved.created:%Y-%m-%d %H:%M} {result.bundle.path}" for saved, result in runs]
        charts.append(history_chart(f"Latency over {len(runs)} runs on {host}", names, series))
    if not charts:
        return None
    return Section(
        "history",
        "History",
        explanations.HISTORY,
        tuple(charts),
    )


def _plain(saved: SavedReport, covered: Sequence[str] = ()) -> tuple[Table, ...]:
    """The report's own tables, without those whose numbers a chart's table has."""
    return tuple(table for table in saved.report.tables if not table.title.startswith(tuple(covered) or ("\0",)))
