"""A validation as a report: its tables, and one gate for each claim."""

from __future__ import annotations

from ..report.gate import Gate, Report, Table, Verdict
from .result import PARITY_TOLERANCE, Validation


def _verdict(holds: bool) -> Verdict:
    return Verdict.PASS if holds else Verdict.FAIL


def validation_report(result: Validation, max_drop: float = 0.01) -> Report:
    """What was compared, with ``result.problems`` as failed gates."""
    gates = [
        Gate(
            name=f"parity {p.adapter}",
            verdict=_verdict(p.max_difference <= PARITY_TOLERANCE and p.changes_output),
            value=p.max_difference,
            limit=PARITY_TOLERANCE,
            unit="logit",
            detail="" if p.changes_output else "the adapter changes nothing",
        )
        for p in result.parity
    ]
    if result.base_restored is not None:
        gates.append(Gate("base restored bit for bit", _verdict(result.base_restored), None, None, ""))
    for row in result.accuracy:
        if row.reference_accuracy is None:
            continue
        limit = row.reference_accuracy - max_drop
        gates.append(
            Gate(
                f"accuracy {row.adapter} {row.variant}",
                _verdict(row.accuracy >= limit),
                row.accuracy,
                limit,
                "share",
                bound="min",
            )
        )
        if row.variant == "fp32" and row.same_argmax is not None:
            gates.append(
                Gate(
                    f"same label as PEFT {row.adapter}",
                    _verdict(row.same_argmax == row.rows),
                    float(row.same_argmax),
                    float(row.rows),
                    "rows",
                    bound="min",
                )
            )
    tables = []
    if result.parity:
        tables.append(
            Table(
                "Parity with PEFT on ragged padded batches, computing in fp32",
                ("adapter", "max |difference|", "changes the output"),
                tuple(
                    (p.adapter or "(base)", p.max_difference, "yes" if p.changes_output else "NO")
                    for p in result.parity
                ),
            )
        )
    if result.accuracy:
        tables.append(
            Table(
                "Accuracy",
                ("adapter", "variant", "data", "rows", "ONNX", "PyTorch", "same label", "max |difference|"),
                tuple(
                    (a.adapter or "(base)", a.variant, a.data, a.rows, a.accuracy, a.reference_accuracy, a.same_argmax,
                     a.max_difference)
                    for a in result.accuracy
                ),
            )
        )  # fmt: skip
    notes = result.problems
    if result.unchecked:
        names = ", ".join(result.unchecked)
        notes = (*notes, f"not compared with PEFT: {names}; no checkpoint at hand, give it with --adapter NAME=PATH")
    if not tables:
        notes = (*notes, "nothing was compared: no PEFT checkpoint is at hand and no --data was given")
    return Report(
        kind="validate",
        title=f"Validation of {result.bundle}",
        gates=tuple(gates),
        tables=tuple(tables),
        notes=notes,
        data=result.as_dict(),
    )
