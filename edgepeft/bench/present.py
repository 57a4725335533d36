"""Results as reports: the tables and gates that the report room prints."""

from __future__ import annotations

from statistics import median

from ..json_text import finite_json
from ..report.gate import Report, Table
from ..targets import Target
from .compare import CheckResult
from .gates import budget_gates
from .result import BenchResult, BundleFacts


def bench_report(result: BenchResult, target: Target) -> Report:
    """A measurement with its budget gates."""
    return Report(
        kind="bench",
        title=f"Bench of {result.bundle.path} for {result.target}",
        gates=budget_gates(result, target),
        tables=(_latency(result), _variants(result), *_memory(result), _sizes(result.bundle)),
        notes=(_host(result),),
        data=finite_json(result.model_dump(mode="json")),
    )


def check_report(result: CheckResult) -> Report:
    """A comparison with its gates."""
    how = "interleaved A B B A rounds of fresh processes" if result.paired else "a saved report of this host"
    tables = [
        Table(
            f"Latency against the baseline, {how}",
            ("variant", "adapter", "shape", "baseline p50 ms", "p50 ms", "ratio", "lower", "upper", "n", "verdict"),
            tuple(
                (c.variant, c.adapter or "(base)", c.shape, c.baseline_p50_ms, c.candidate_p50_ms, c.ratio, c.lower,
                 c.upper, c.replicates, c.verdict.value)
                for c in result.cases
            ),
        )
    ]  # fmt: skip
    if result.accuracy:
        tables.append(
            Table(
                "Accuracy",
                ("variant", "adapter", "rows", "baseline", "accuracy", "lower", "upper", "drop", "McNemar p"),
                tuple(
                    (a.variant, a.name, a.rows, a.baseline_accuracy, a.accuracy, *(a.bounds or (None, None)),
                     *((None, None) if a.baseline is None else (a.baseline.drop, a.baseline.p_value)))
                    for a in result.accuracy
                ),
            )
        )  # fmt: skip
    return Report(
        kind="check",
        title=f"Check of {result.candidate.bundle.path} against {result.baseline.path} for {result.target}",
        gates=result.gates,
        tables=(*tables, _variants(result.candidate), *_memory(result.candidate), _sizes(result.candidate.bundle)),
        notes=(_host(result.candidate), *result.notes, f"measured in {result.seconds:.0f} s"),
        data=finite_json(result.model_dump(mode="json")),
    )


def _latency(result: BenchResult) -> Table:
    speed = ("tokens/s",) if any(c.tokens_per_s is not None for c in result.cases) else ()
    return Table(
        "Steady latency",
        ("variant", "adapter", "shape", "p50 ms", "p95 ms", "p99 ms", *speed, "processes", "iterations"),
        tuple(
            (
                c.variant,
                c.adapter or "(base)",
                c.shape,
                c.p50_ms,
                c.p95_ms,
                c.p99_ms,
                *((c.tokens_per_s,) if speed else ()),
                len(c.process_p50_ms),
                c.iterations,
            )
            for c in result.cases
        ),
    )


def _variants(result: BenchResult) -> Table:
    return Table(
        "Load, swap and memory",
        ("variant", "load ms", "swap p50 ms", "swap + inference ms", "first use ms", "peak RSS MB", "RSS drift MB"),
        tuple(
            (v.variant, median(v.load_ms), v.swap_p50_ms, v.swap_first_inference_p50_ms,
             v.swap_cold_max_ms, v.peak_rss_mb, v.rss_drift_mb)
            for v in result.variants
        ),
    )  # fmt: skip


def _memory(result: BenchResult) -> tuple[Table, ...]:
    """What is the process's own and what is mapped from files, where the platform tells."""
    rows = tuple(
        (v.variant, v.anonymous_mb, v.mapped_mb, v.load_peak_mb) for v in result.variants if v.anonymous_mb is not None
    )
    return (Table("Memory once open", ("variant", "own MB", "mapped MB", "peak until then MB"), rows),) if rows else ()


def _sizes(facts: BundleFacts) -> Table:
    rows = [("bundle", facts.bundle_mb)]
    rows += [(f"variant {name}", size) for name, size in facts.variants_mb.items()]
    rows += [(f"adapter {name}", size) for name, size in facts.adapters_mb.items()]
    return Table("Sizes", ("part", "MB"), tuple(rows))


def _host(result: BenchResult) -> str:
    host = result.host
    return (
        f"{host.cpu}, {host.cores} cores, {host.os} {host.machine}, Python {host.python}, "
        f"onnxruntime {host.onnxruntime}, {host.threads} thread{'s' if host.threads != 1 else ''}"
        + (f", kernels: {host.kernels}" if host.kernels else "")
    )
