"""What every validation on a device says, whatever the task: who ran it, memory, sizes, whether the base came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...bench import WorkerResult
from ...bundle import Bundle
from ...json_text import finite_json
from ...report.gate import Gate, Report, Table
from ...targets import Target
from ..executors.protocol import Executor
from .static import EXECUTED, size_gates


def memory_gate(name: str, result: WorkerResult, target: Target, emulated: bool) -> tuple[Gate, ...]:
    """Peak memory; an emulator's own share counts in, so only staying within the budget is conclusive there."""
    value, limit = result.peak_rss_mb, target.budgets.peak_rss_mb
    if value is None or limit is None:
        return ()
    detail = "the emulator's own memory included" if emulated else ""
    # How much of it is the emulator's is not known: it may be all.
    return (Gate.at_most(f"peak RSS {name}", value, limit, "MB", detail, best=0.0 if emulated else None),)


def judged_coarsely(bundle: Bundle, variant: str, executor: Executor) -> bool:
    """Whether a variant's numbers there may differ by more than fp32's rounding: quantized, or computed in less."""
    return bool(getattr(executor, "reduced_precision", False)) or bundle.manifest.variants[variant].quantized_share > 0


def device_report(
    bundle: Bundle,
    target: Target,
    executor: Executor,
    results: Mapping[str, WorkerResult],
    gates: Sequence[Gate],
    tables: Sequence[Table],
    data: Mapping[str, Any],
) -> Report:
    """A validation's report: ``gates`` and ``tables`` on what was asked, beside what is said of every run."""
    common: list[Gate] = []
    notes: list[str] = []
    for variant, result in results.items():
        if result.base_restored is not None:
            common.append(Gate.holds(f"base restored bit for bit {variant}", result.base_restored))
        common += memory_gate(variant, result, target, executor.emulated)
        host = result.host
        notes.append(
            f"{variant}: {executor.name}, {host.cpu}, {host.os} {host.machine}, onnxruntime {host.onnxruntime}, "
            f"{host.threads} thread{'s' if host.threads != 1 else ''}"
        )
        notes += result.notes
    if executor.emulated:
        notes.append("emulated: what was measured of time there says nothing about the device, and was not judged")
    executed = Gate.holds(f"{EXECUTED}{executor.name}", True, target.name)
    return Report(
        kind="validate",
        title=f"Validation of {bundle.path} on {target.name}, executed by {executor.name}",
        gates=(executed, *gates, *common, *size_gates(bundle, target, tuple(results))),
        tables=tuple(tables),
        notes=tuple(notes),
        data={
            "target": target.name,
            "executor": executor.name,
            "emulated": executor.emulated,
            "executed": True,
            **finite_json(data),
            "base_restored": {v: r.base_restored for v, r in results.items()},
            "host": {v: r.host.model_dump(mode="json") for v, r in results.items()},
        },
    )
