"""A validation on a device as a report: its rows, and one gate for each claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ...bench import WorkerResult, floor_gate
from ...bundle import Bundle
from ...report.gate import Gate, Report, Table, Verdict
from ...targets import Target
from ..executors.protocol import Executor
from .device_report import device_report, judged_coarsely

#: max |logit difference| of an fp32 variant on the device, relative where logits exceed 1: as parity with PEFT allows.
TOLERANCE = 1e-4
#: Share of rows where a quantized variant must choose the label that it chooses natively: its kernels may round otherwise.
QUANTIZED_SAME = 0.99


@dataclass(frozen=True)
class DeviceRows:
    """One adapter and variant on the device, beside what it gives natively here and under PEFT."""

    adapter: str | None
    variant: str
    rows: int
    #: Rows with the label that the same variant gives natively, and the largest logit difference.
    same_native: int
    native_difference: float
    #: The same against PEFT fp32, where its checkpoint is at hand.
    same_peft: int | None = None
    peft_difference: float | None = None
    #: Accuracy on labelled rows.
    hits: int | None = None
    peft_hits: int | None = None


def _least(name: str, value: int, limit: int, rows: int, detail: str = "") -> Gate:
    verdict = Verdict.PASS if value >= limit else Verdict.FAIL
    return Gate(name, verdict, float(value), float(limit), "rows", detail or f"of {rows}", bound="min")


def _row_gates(row: DeviceRows, quantized: bool, target: Target, max_drop: float) -> list[Gate]:
    key = f"{row.adapter or '(base)'} {row.variant}"
    gates = [
        _least(
            f"same label as native {key}",
            row.same_native,
            math.ceil(row.rows * QUANTIZED_SAME) if quantized else row.rows,
            row.rows,
        )
    ]
    if not quantized:
        # PEFT where it is at hand; the native run of the same graph otherwise.
        value = row.native_difference if row.peft_difference is None else row.peft_difference
        against = "native" if row.peft_difference is None else "PEFT"
        verdict = Verdict.PASS if value <= TOLERANCE else Verdict.FAIL
        gates.append(Gate(f"logits against {against} {key}", verdict, value, TOLERANCE, "logit"))
        if row.same_peft is not None:
            gates.append(_least(f"same label as PEFT {key}", row.same_peft, row.rows, row.rows))
    if row.hits is not None and row.peft_hits is not None:
        limit = row.peft_hits / row.rows - max_drop
        share = row.hits / row.rows
        # One row more or less is not a drop: with few rows it is more than max_drop, and says nothing.
        lost = row.peft_hits - row.hits
        missed = Verdict.FAIL if lost > max(2, max_drop * row.rows * 2) else Verdict.INCONCLUSIVE
        verdict = Verdict.PASS if share >= limit else missed
        detail = f"{row.hits} of {row.rows} rows, PEFT {row.peft_hits}"
        gates.append(Gate(f"accuracy {key}", verdict, share, limit, "share", detail, bound="min"))
    if row.hits is not None and (floor := target.floor(row.adapter)) is not None:
        gates.append(floor_gate(f"accuracy floor {key}", row.hits, row.rows, floor, target.check.confidence))
    return gates


def rows_report(
    bundle: Bundle,
    target: Target,
    executor: Executor,
    results: Mapping[str, WorkerResult],
    rows: Sequence[DeviceRows],
    max_drop: float,
) -> Report:
    """What was run where, beside the native run and PEFT, with a gate for each claim."""
    gates: list[Gate] = []
    for row in rows:
        gates += _row_gates(row, judged_coarsely(bundle, row.variant, executor), target, max_drop)
    columns = (
        "adapter", "variant", "rows", "same label as native", "max |difference|", "same label as PEFT", "max |difference| to PEFT",
        "accuracy", "accuracy PEFT",
    )  # fmt: skip
    table = Table(
        "Rows on the device",
        columns,
        tuple(
            (r.adapter or "(base)", r.variant, r.rows, r.same_native, r.native_difference, r.same_peft, r.peft_difference,
             None if r.hits is None else r.hits / r.rows, None if r.peft_hits is None else r.peft_hits / r.rows)
            for r in rows
        ),
    )  # fmt: skip
    data = {"rows": [asdict(row) for row in rows]}
    return device_report(bundle, target, executor, results, gates, [table], data)
