"""The charts of a report: ratios with intervals, latencies with budgets, accuracy against cost, sizes, history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..report.gate import Gate, Table, Verdict
from . import charts

_VERDICT_COLOURS = {Verdict.PASS: charts.PASS, Verdict.FAIL: charts.FAIL, Verdict.INCONCLUSIVE: charts.UNSURE}
#: More rows than this are not drawn: the table has them all.
MAX_ROWS = 40


@dataclass(frozen=True)
class Chart:
    """A drawn chart, what a screen reader says for it, the numbers behind it, and how its marks are read."""

    title: str
    svg: str
    label: str
    numbers: Table
    caption: str = ""


@dataclass(frozen=True)
class Interval:
    """A named estimate with its interval, a verdict for its colour, and the limit it is held to."""

    name: str
    estimate: float
    lower: float
    upper: float
    verdict: Verdict | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Latency:
    """The medians of several processes in ms, the tails where the sample supports them, and the budget."""

    name: str
    medians: tuple[float, ...]
    p50: float
    p95: float | None = None
    budget: float | None = None


@dataclass(frozen=True)
class Choice:
    """What a variant with an adapter costs and gives: one point of accuracy against cost."""

    variant: str
    adapter: str
    cost: float
    accuracy: float
    lower: float
    upper: float


def ratio_chart(title: str, rows: Sequence[Interval], axis: str) -> Chart:
    """Estimates with their intervals, a row each; a dashed line where a limit lies."""
    shown = rows[:MAX_ROWS]
    with charts.drawing(len(shown)) as (_, axes, out):
        for place, row in enumerate(shown):
            colour = _VERDICT_COLOURS[row.verdict] if row.verdict else charts.colour(0)
            axes.plot([row.lower, row.upper], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([row.estimate], [place], "o", color=colour)
        for limit in sorted({row.limit for row in shown if row.limit is not None}):
            axes.axvline(limit, color=charts.FAIL, linestyle=(0, (4, 3)), linewidth=1)
        if any(row.lower <= 1 <= row.upper for row in shown):
            axes.axvline(1.0, color=charts.MUTED, linewidth=0.8)
        _name_rows(axes, [row.name for row in shown])
        axes.set_xlabel(axis)
    caption = "Dot: estimate. Line: interval."
    if any(row.verdict for row in shown):
        caption += " Green passes, red fails, yellow is inconclusive."
    if any(row.limit is not None for row in shown):
        caption += " Dashed: the limit."
    label = "; ".join(f"{row.name}: {row.estimate:.3g}, interval {row.lower:.3g} to {row.upper:.3g}" for row in shown)
    numbers = Table(
        title,
        ("case", "estimate", "lower", "upper", "limit", "verdict"),
        tuple((r.name, r.estimate, r.lower, r.upper, r.limit, r.verdict and r.verdict.value) for r in rows),
    )
    return Chart(title, out[0], label, numbers, caption)


def latency_chart(title: str, rows: Sequence[Latency]) -> Chart:
    """The median of each process as a dot, their median as a bar, p95 as a tick, the budget as a dashed mark."""
    shown = rows[:MAX_ROWS]
    with charts.drawing(len(shown)) as (_, axes, out):
        for place, row in enumerate(shown):
            over = row.budget is not None and row.p50 > row.budget
            colour = charts.FAIL if over else charts.colour(0)
            axes.plot([0, row.p50], [place, place], color=colour, linewidth=5, alpha=0.25, solid_capstyle="butt")
            axes.plot(row.medians, [place] * len(row.medians), "o", color=colour, alpha=0.9)
            if row.p95 is not None:
                axes.plot([row.p50, row.p95], [place, place], color=colour, linewidth=1)
                axes.plot([row.p95], [place], "|", color=colour, markersize=8)
            if row.budget is not None:
                axes.plot([row.budget] * 2, [place - 0.4, place + 0.4], "--", color=charts.FAIL, linewidth=1.2)
        _name_rows(axes, [row.name for row in shown])
        axes.set_xlim(left=0)
        axes.set_xlabel("ms")
    label = "; ".join(f"{row.name}: median {row.p50:.3g} ms" for row in shown)
    numbers = Table(
        title,
        ("case", "p50 ms", "p95 ms", "budget ms", "processes"),
        tuple((r.name, r.p50, r.p95, r.budget, len(r.medians)) for r in rows),
    )
    caption = "Dots: medians of single processes. Bar: their median. Tick: 95th percentile."
    if any(row.budget is not None for row in shown):
        caption += " Dashed: the target's budget."
    return Chart(title, out[0], label, numbers, caption)


def front_chart(title: str, rows: Sequence[Choice], axis: str) -> Chart:
    """Accuracy with its interval against a cost, a series an adapter, and each adapter's Pareto front as a line."""
    adapters = list(dict.fromkeys(row.adapter for row in rows))
    with charts.drawing(7, names=adapters) as (figure, axes, out):
        for position, adapter in enumerate(adapters):
            mine = sorted((row for row in rows if row.adapter == adapter), key=lambda row: row.cost)
            colour, named = charts.colour(position), charts.short(adapter)
            axes.vlines(
                [r.cost for r in mine], [r.lower for r in mine], [r.upper for r in mine], colors=colour, alpha=0.5
            )
            axes.plot(
                [row.cost for row in mine], [row.accuracy for row in mine], charts.marker(position), color=colour, label=named
            )  # fmt: skip
            front = pareto(mine)
            axes.plot([row.cost for row in front], [row.accuracy for row in front], color=colour, linewidth=1)
        for variant in dict.fromkeys(row.variant for row in rows):
            # One name for all adapters, above the highest interval: beside each point they would cover each other.
            top = max((row for row in rows if row.variant == variant), key=lambda row: row.upper)
            axes.annotate(variant, (top.cost, top.upper), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        axes.margins(x=0.12, y=0.18)
        axes.set_xlim(left=0)
        axes.set_xlabel(axis)
        axes.set_ylabel("accuracy")
        charts.legend(figure, axes, adapters)
    label = "; ".join(f"{row.adapter} {row.variant}: {row.accuracy:.3f} at {row.cost:.3g}" for row in rows)
    caption = (
        "Vertical lines: 95 % intervals. A line joins an adapter's Pareto front: nothing is both cheaper and better."
    )
    numbers = Table(
        title,
        ("adapter", "variant", axis, "accuracy", "lower", "upper", "on the front"),
        tuple(
            (
                r.adapter,
                r.variant,
                r.cost,
                r.accuracy,
                r.lower,
                r.upper,
                "yes" if r in pareto([o for o in rows if o.adapter == r.adapter]) else "no",
            )
            for r in rows
        ),
    )
    return Chart(title, out[0], label, numbers, caption)


def pareto(rows: Sequence[Choice]) -> list[Choice]:
    """The choices that no other beats in both cost and accuracy, cheapest first.

    Example:
        >>> a, b = Choice("int8", "x", 10, 0.8, 0.7, 0.9), Choice("fp32", "x", 40, 0.8, 0.7, 0.9)
        >>> [row.variant for row in pareto([b, a])]
        ['int8']
    """
    front: list[Choice] = []
    for row in sorted(rows, key=lambda row: (row.cost, -row.accuracy)):
        if not front or row.accuracy > front[-1].accuracy:
            front.append(row)
    return front


def size_chart(title: str, parts: dict[str, dict[str, float]]) -> Chart:
    """What a device stores, a bar a variant, stacked by part; ``parts`` maps a bar to its parts in MB."""
    names = list(dict.fromkeys(part for bar in parts.values() for part in bar))
    with charts.drawing(len(parts) * 1.3, names=names) as (figure, axes, out):
        for place, bar in enumerate(parts.values()):
            start = 0.0
            for position, name in enumerate(names):
                width = bar.get(name, 0.0)
                axes.barh(
                    place,
                    width,
                    left=start,
                    height=0.6,
                    color=charts.colour(position),
                    label=charts.short(name) if place == 0 else None,
                )
                start += width
            axes.annotate(
                f"{start:.1f} MB", (start, place), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        _name_rows(axes, list(parts))
        axes.margins(x=0.18)
        axes.set_xlabel("MB (1,000,000 bytes)")
        charts.legend(figure, axes, names)
    label = "; ".join(f"{name}: {sum(bar.values()):.1f} MB" for name, bar in parts.items())
    numbers = Table(
        title,
        ("variant", *names, "together"),
        tuple((name, *(bar.get(part) for part in names), sum(bar.values())) for name, bar in parts.items()),
    )
    return Chart(title, out[0], label, numbers)


def history_chart(title: str, runs: Sequence[str], series: dict[str, list[Latency | None]]) -> Chart:
    """Medians of the same cases over several runs, oldest first, with the range of the processes.

    Args:
        title: The chart's title.
        runs: A name for each run.
        series: By case, one value for each run; ``None`` where the run has not measured it.
    """
    shown = dict(list(series.items())[: len(charts.MARKERS)])
    with charts.drawing(8, names=list(shown)) as (figure, axes, out):
        for position, (name, values) in enumerate(shown.items()):
            known = [(at, value) for at, value in enumerate(values) if value is not None]
            colour = charts.colour(position)
            axes.vlines(
                [at for at, _ in known], [min(v.medians) for _, v in known], [max(v.medians) for _, v in known],
                colors=colour, alpha=0.5,
            )  # fmt: skip
            axes.plot(
                [at for at, _ in known],
                [v.p50 for _, v in known],
                charts.marker(position) + "-",
                color=colour,
                label=name,
            )
        axes.set_xticks(range(len(runs)), [str(number) for number in range(1, len(runs) + 1)])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("run, oldest first")
        axes.set_ylabel("p50 ms")
        charts.legend(figure, axes, list(shown))
    numbers = Table(
        title,
        ("run", *series),
        tuple(
            (f"{number + 1}: {run}", *(v.p50 if (v := values[number]) else None for values in series.values()))
            for number, run in enumerate(runs)
        ),
    )
    return Chart(title, out[0], f"{len(shown)} cases over {len(runs)} runs", numbers)


def budgets_of(gates: Sequence[Gate]) -> dict[str, float]:
    """Latency budgets in ms by case, from the gates of a bench report."""
    start = "p50 "
    return {g.name.removeprefix(start): g.limit for g in gates if g.name.startswith(start) and g.limit is not None}


def _name_rows(axes, names: Sequence[str]) -> None:  # type: ignore[no-untyped-def] # matplotlib is imported late
    axes.set_yticks(range(len(names)), [charts.short(name) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
