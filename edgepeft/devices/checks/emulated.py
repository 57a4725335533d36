"""``bench`` and ``check`` where time means nothing: memory, sizes, and the instructions of an inference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ...bench import Case, CaseCount, Job, Progress, Prompts, Rows, WorkerResult
from ...bench.measure import make_plan
from ...bench.result import case_key
from ...bundle import Bundle
from ...errors import InputError
from ...json_text import finite_json
from ...report.accuracy import NO_LABEL, chosen_labels
from ...report.gate import Gate, Report, Table
from ...report.partial import Keep, keep_nothing
from ...targets import Target
from ..executors.protocol import Executor
from .device_report import memory_gate
from .static import size_gates

#: Swaps under emulation: enough for the resident set to settle.
SWAPS = 200
_TEXT = "A short text."

#: By how many instructions two processes may differ in the same inference: the interpreter's share, and where memory lies.
NOISE = 50_000

#: Counted inferences by variant and case.
Counts = Mapping[tuple[str, Case], CaseCount]


@dataclass(frozen=True)
class Emulated:
    """One bundle, measured by an emulated executor: results by variant."""

    bundle: Bundle
    target: Target
    executor: Executor
    results: Mapping[str, WorkerResult]

    @property
    def counts(self) -> Counts:
        """What was counted; empty where the executor does not count."""
        return {(variant, count.case): count for variant, result in self.results.items() for count in result.counts}


def measure_emulated(
    bundle: Bundle,
    target: Target,
    executor: Executor,
    variants: Sequence[str],
    adapters: Sequence[str | None] | None,
    shapes: Sequence[str] | None,
    progress: Progress,
    *,
    counts_only: bool = False,
    keep: Keep = keep_nothing,
) -> Emulated:
    """Run texts, swaps and counted inferences of each variant in one process; with ``counts_only`` the last alone.

    Shapes default to the target's, for a language model to its smallest: a prompt of 32 tokens takes a minute there. ``keep`` is
    given what makes the same of the variants so far, ``None`` before the first.
    """
    generates = bundle.manifest.task == "text-generation"
    if shapes is None and generates:
        shapes = [str(target.shapes()[0])]
    plan = make_plan(bundle.manifest, target, adapters, variants, shapes, 1)
    names = bundle.manifest.adapters or (None,)
    results: dict[str, WorkerResult] = {}
    measured = Emulated(bundle, target, executor, results)
    keep(lambda: measured if results else None)
    for number, variant in enumerate(plan.variants):
        progress(number, len(plan.variants), f"{variant} of {bundle.path.name} on {executor.name}")
        job = Job(
            bundle=str(bundle.path),
            variant=variant,
            threads=1,
            counted=plan.cases if getattr(executor, "counts", False) else (),
        )
        if not counts_only:
            answered = (
                {"prompts": tuple(Prompts(adapter=name, texts=(_TEXT,), max_new_tokens=4) for name in names)}
                if generates
                else {"rows": tuple(Rows(adapter=name, texts=(_TEXT,)) for name in names)}
            )
            job = job.model_copy(update={**answered, "swaps": SWAPS if bundle.manifest.adapters else 0})
        results[variant] = executor.run(job)
    progress(len(plan.variants), len(plan.variants), "done")
    return measured


def emulated_report(
    done: Emulated,
    kind: str = "bench",
    title: str | None = None,
    gates: Sequence[Gate] = (),
    tables: Sequence[Table] = (),
) -> Report:
    """What was measured, against the target's budgets; ``gates`` and ``tables`` of a comparison come first."""
    bundle, target, executor, results = done.bundle, done.target, done.executor, done.results
    own = [gate for variant, result in results.items() for gate in memory_gate(variant, result, target, True)]
    broken = [gate for variant, result in results.items() for gate in _finite_gates(variant, result)]
    drift = {v: r.swap.drift_mb if r.swap is not None else None for v, r in results.items()}
    if not done.counts:
        why = getattr(executor, "uncounted", "") or f"{executor.name} does not count"
        counted: tuple[Table, ...] = ()
        notes = [f"instructions were not counted: {why}"]
    else:
        counted = (_counted(done.counts),)
        notes = [
            "instructions of one inference on one thread: the least of several, which another run gives within 0.1 % or 50,000"
        ]
    memory = Table(
        f"Memory on {executor.name}, the emulator's own included",
        ("variant", "peak RSS MB", f"RSS drift MB over {SWAPS} swaps"),
        tuple((v, r.peak_rss_mb, drift[v]) for v, r in results.items()),
    )
    first = next(iter(results.values()))
    return Report(
        kind=kind,
        title=title or f"Bench of {bundle.path} for {target.name} on {executor.name}",
        gates=(*broken, *gates, *own, *size_gates(bundle, target, tuple(results))),
        tables=(*tables, *counted, memory),
        notes=(
            *(note for result in results.values() for note in result.notes),
            f"{first.host.cpu}, {first.host.os} {first.host.machine}, onnxruntime {first.host.onnxruntime}",
            *notes,
            "emulated: no latency, load or swap time was judged; measure them on a device with --on ssh://user@host",
        ),
        data={
            "target": target.name,
            "executor": executor.name,
            "emulated": True,
            "results": finite_json({v: r.model_dump(mode="json") for v, r in results.items()}),
        },
    )


def _finite_gates(variant: str, result: WorkerResult) -> list[Gate]:
    """A failed gate for each adapter whose answers were not finite numbers."""
    said = {
        rows.adapter: f"{bad} of {len(rows.logits)} rows have logits that are not finite numbers"
        for rows in result.rows
        if (bad := int((chosen_labels(np.array(rows.logits)) == NO_LABEL).sum()))
    }
    said |= {each.adapter: each.not_finite for each in result.generated if each.not_finite}
    return [
        Gate.holds(f"finite outputs {adapter or '(base)'} {variant}", False, where) for adapter, where in said.items()
    ]


def _counted(counts: Counts) -> Table:
    rows = []
    for (variant, case), count in counts.items():
        spread = max(count.instructions) / count.least - 1
        rows.append(
            (variant, case.adapter or "(base)", case.label, count.least / 1e6, spread * 100, len(count.instructions))
        )
    columns = ("variant", "adapter", "shape", "million instructions", "largest above it, %", "inferences")
    return Table("Instructions of one inference", columns, tuple(rows))


def compare_counts(candidate: Counts, baseline: Counts, target: Target) -> tuple[tuple[Gate, ...], tuple[Table, ...]]:
    """A gate for each case that both have, on the ratio of instructions; and the table of them.

    The target's tolerance is allowed, or ``NOISE`` where that is more: inferences of a few millions.
    Raises :class:`InputError` where they have none in common.
    """
    gates, rows = [], []
    for key, count in candidate.items():
        if key not in baseline:
            continue
        variant, case = key
        before, after = baseline[key].least, count.least
        limit = 1.0 + max(target.check.instruction_tolerance, NOISE / before)
        name = case_key(variant, case.adapter, case.label)
        detail = f"{after / 1e6:.6g} million over {before / 1e6:.6g} million"
        gate = Gate.at_most(f"instructions {name}", after / before, limit, "of the baseline's", detail)
        gates.append(gate)
        rows.append(
            (variant, case.adapter or "(base)", case.label, before / 1e6, after / 1e6, gate.value, gate.verdict.value)
        )
    if candidate and not gates:
        raise InputError("the baseline has none of the variants, adapters and shapes whose instructions were counted")
    columns = ("variant", "adapter", "shape", "baseline, million", "million", "ratio", "verdict")
    return tuple(gates), (Table("Instructions against the baseline", columns, tuple(rows)),) if rows else ()


def read_counts(path: Path, executor: Executor) -> dict[str, WorkerResult]:
    """What a report holds that ``bench`` saved on the same kind of executor, by variant; :class:`InputError` for another file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        if "partial" in data:
            raise InputError(f"{path} is partial ({data['partial']!s:.80}), and so no baseline: measure it again")
        measured_on = data["executor"]
        results = {name: WorkerResult.model_validate(each) for name, each in data["results"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(
            f"{path} is not the JSON report of a bench on {executor.name}: {type(error).__name__} {str(error)[:120]}"
        ) from error
    if measured_on != executor.name:
        raise InputError(
            f"{path} was measured on {measured_on}, this is {executor.name}: instructions are not comparable"
        )
    return results


def comparable_counts(path: Path, saved: Mapping[str, WorkerResult], done: Emulated) -> Counts:
    """The counts of :func:`read_counts`; :class:`InputError` where they are of another ONNX Runtime."""
    host = next(iter(done.results.values())).host
    for result in saved.values():
        if result.host.onnxruntime != host.onnxruntime:
            raise InputError(
                f"{path} was measured with onnxruntime {result.host.onnxruntime}, this is {host.onnxruntime}: measure it again, "
                "or give the baseline's bundle"
            )
    return Emulated(done.bundle, done.target, done.executor, saved).counts
