"""A validation on a device as a report: its rows, and one gate for each claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...bench import WorkerResult, floor_gate
from ...bundle import Bundle
from ...report.accuracy import Accuracy, Beside
from ...report.gate import Cell, Gate, Report, Table
from ...targets import Target
from ...validate.gates import PARITY_TOLERANCE
from ..executors.protocol import Executor
from .device_report import device_report, judged_coarsely

#: Share of rows where a quantized variant must choose the label that it chooses natively: its kernels may round otherwise.
QUANTIZED_SAME = 0.99


def _row_gates(row: Accuracy, quantized: bool, target: Target, max_drop: float) -> list[Gate]:
    key = f"{row.name} {row.variant}"
    gates = []
    if row.native is not None:
        least = math.ceil(row.rows * QUANTIZED_SAME) if quantized else row.rows
        gates.append(_same_label(f"same label as native {key}", row, row.native, least))
    if not quantized:
        # PEFT where it is at hand; the native run of the same graph otherwise. Relative where logits exceed 1.
        against, beside = ("PEFT", row.peft) if row.peft is not None else ("native", row.native)
        difference = None if beside is None else beside.max_difference
        gates.append(
            Gate.at_most(f"logits against {against} {key}", difference, PARITY_TOLERANCE, "logit", broken=row.broken)
        )
        if row.peft is not None:
            gates.append(_same_label(f"same label as PEFT {key}", row, row.peft, row.rows))
    if row.hits is not None and row.peft is not None and row.peft.hits is not None:
        # One row more or less is not a drop: with few rows it is more than max_drop, and says nothing.
        slack = max(2, max_drop * row.rows * 2)
        gates.append(
            Gate.at_least(
                f"accuracy {key}",
                row.hits / row.rows,
                row.peft.hits / row.rows - max_drop,
                "share",
                f"{row.hits} of {row.rows} rows, PEFT {row.peft.hits}",
                best=(row.hits + slack) / row.rows - max_drop,
                broken=row.broken,
            )
        )
    if row.hits is not None and (floor := target.floor(row.adapter)) is not None:
        gates.append(floor_gate(f"accuracy floor {key}", row.hits, row.rows, floor, target.check.confidence))
    return gates


def _same_label(name: str, row: Accuracy, beside: Beside, least: int) -> Gate:
    same = None if beside.same_label is None else float(beside.same_label)
    return Gate.at_least(name, same, float(least), "rows", f"of {row.rows}", broken=row.broken)


def _json(row: Accuracy) -> dict[str, Any]:
    native, peft = row.native or Beside(), row.peft or Beside()
    return {
        "adapter": row.adapter,
        "variant": row.variant,
        "rows": row.rows,
        "same_native": native.same_label,
        "native_difference": native.max_difference,
        "same_peft": peft.same_label,
        "peft_difference": peft.max_difference,
        "hits": row.hits,
        "peft_hits": peft.hits,
        "not_finite": row.not_finite,
    }


def rows_report(
    bundle: Bundle,
    target: Target,
    executor: Executor,
    results: Mapping[str, WorkerResult],
    rows: Sequence[Accuracy],
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
    table = Table("Rows on the device", columns, tuple(map(_cells, rows)))
    data = {"rows": [_json(row) for row in rows]}
    return device_report(bundle, target, executor, results, gates, [table], data)


def _cells(row: Accuracy) -> tuple[Cell, ...]:
    native, peft = row.native or Beside(), row.peft or Beside()
    return (
        row.name,
        row.variant,
        row.rows,
        native.same_label,
        native.max_difference,
        peft.same_label,
        peft.max_difference,
        row.accuracy,
        row.peft_accuracy,
    )
