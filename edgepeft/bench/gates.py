"""Judging numbers against a target: budgets and accuracy floors."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..report.gate import Gate
from ..targets import Target
from .result import BenchResult, CaseResult
from .stats import wilson


def budget_gates(result: BenchResult, target: Target) -> tuple[Gate, ...]:
    """One gate for each budget of ``target`` that ``result`` has a number for, and a failed one for outputs that are not finite.

    Sizes and memory pass or fail. A time passes when the median over processes is within the limit, and fails when
    *every* process is over it; in between it is inconclusive, because a busy machine only ever adds time, so one
    process within the limit shows that the bundle can keep it.
    """
    budgets = target.budgets
    gates = [*finite_gates(result)]
    for case in result.cases:
        if (limit := budgets.p50_ms.get(case.shape)) is not None:
            gates.append(_time_gate(f"p50 {case.key}", case.process_p50_ms, case.p50_ms, limit))
        if (limit := budgets.p95_ms.get(case.shape)) is not None:
            gates.append(_tail_gate(f"p95 {case.key}", case, limit))
        if budgets.tokens_per_s is not None and case.tokens_per_s is not None:
            gates.append(_speed_gate(case, budgets.tokens_per_s))
    for variant in result.variants:
        name = variant.variant
        if budgets.swap_ms is not None and variant.swap_p50_ms is not None:
            gates.append(_time_gate(f"swap {name}", variant.swap_process_p50_ms, variant.swap_p50_ms, budgets.swap_ms))
        if budgets.load_ms is not None:
            gates.append(_time_gate(f"load {name}", variant.load_ms, median(variant.load_ms), budgets.load_ms))
        gates += _size_gate(f"peak RSS {name}", variant.peak_rss_mb, budgets.peak_rss_mb)
        gates += _size_gate(
            f"own memory {name}", variant.anonymous_mb, budgets.anonymous_mb, "anonymous, once it is open"
        )
        gates += _size_gate(f"mapped memory {name}", variant.mapped_mb, budgets.mapped_mb, "of files, once it is open")
        gates += _size_gate(f"peak at load {name}", variant.load_peak_mb, budgets.load_peak_mb)
        gates += _size_gate(
            f"RSS drift {name}", variant.rss_drift_mb, budgets.rss_drift_mb, f"{variant.swaps} swaps in all"
        )
    sizes = {v.variant: result.bundle.deployed_mb.get(v.variant, result.bundle.bundle_mb) for v in result.variants}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    gates += _size_gate(
        "bundle size",
        sizes.get(largest, result.bundle.bundle_mb),
        budgets.bundle_mb,
        f"with {largest}, the largest variant measured; the whole folder has {result.bundle.bundle_mb:.1f} MB",
    )
    for adapter, size in result.bundle.adapters_mb.items():
        gates += _size_gate(f"adapter size {adapter}", size, budgets.adapter_mb)
    return tuple(gates)


def _time_gate(name: str, processes: Sequence[float], value: float, limit: float) -> Gate:
    over = sum(not ms <= limit for ms in processes)
    detail = f"median of {len(processes)} processes, {min(processes):.3g} to {max(processes):.3g} ms"
    detail = f"{detail}, {over} over the limit" if over else detail
    return Gate.at_most(name, value, limit, "ms", detail, best=min(processes))


def _speed_gate(case: CaseResult, least: float) -> Gate:
    """Tokens a second at least ``least``, judged as times are: it fails where every process is slower."""
    speed = case.tokens_per_s or 0.0
    scale = speed * case.p50_ms
    speeds = [scale / ms for ms in case.process_p50_ms]
    detail = f"median of {len(speeds)} processes, {min(speeds):.3g} to {max(speeds):.3g} tokens/s"
    return Gate.at_least(f"tokens/s {case.key}", speed, least, "tokens/s", detail, best=max(speeds))


def _tail_gate(name: str, case: CaseResult, limit: float) -> Gate:
    """The 95th percentile fails only where the median is over the limit too: a busy machine makes long tails."""
    detail = f"of {case.iterations} iterations" if case.p95_ms is not None else "too few iterations to tell"
    return Gate.at_most(name, case.p95_ms, limit, "ms", detail, best=case.p50_ms)


def _size_gate(name: str, value: float | None, limit: float | None, detail: str = "") -> tuple[Gate, ...]:
    if value is None or limit is None:
        return ()
    return (Gate.at_most(name, value, limit, "MB", detail),)


def floor_gate(name: str, hits: int, total: int, floor: float, confidence: float = 0.95) -> Gate:
    """Accuracy ``hits / total`` against ``floor``: judged by Wilson's interval, so few rows are inconclusive."""
    interval = wilson(hits, total, confidence)
    detail = f"{hits} of {total} rows, {confidence:.0%} interval {interval.lower:.3f} to {interval.upper:.3f}"
    bounds = (interval.lower, interval.upper)
    return Gate.within(name, interval.estimate, bounds, floor, "share", detail, bound="min")


def finite_gates(result: BenchResult) -> tuple[Gate, ...]:
    """A failed gate for each case whose outputs were not finite numbers: its times are those of a broken model."""
    return tuple(
        Gate.holds(f"finite outputs {case.key}", False, f"{case.not_finite} are not finite")
        for case in result.cases
        if case.not_finite
    )
