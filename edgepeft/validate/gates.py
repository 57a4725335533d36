"""What a validation claims: one gate for each claim, and the tables beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..base.rounding import TOLERANCE
from ..report.accuracy import Accuracy
from ..report.gate import Gate, Table
from .generalization import generalization_table
from .quality import quality_tables
from .result import AdapterParity, Validation

#: max |logit difference| against PEFT fp32 that an fp32 variant may show: what capture allows the base. Where PEFT's own
#: rounding is larger, that counts (:mod:`edgepeft.base.rounding`).
PARITY_TOLERANCE = TOLERANCE


def validation_gates(
    parity: Sequence[AdapterParity],
    base_restored: bool | None,
    accuracy: Sequence[Accuracy],
    not_finite: Mapping[tuple[str | None, str], str],
    max_drop: float,
) -> tuple[Gate, ...]:
    """A gate for each claim.

    Args:
        parity: Each adapter against PEFT.
        base_restored: Whether the base's outputs were the same bits after every adapter; ``None`` where it has none.
        accuracy: Each adapter and variant on labelled rows.
        not_finite: By adapter (``None``: the base) and variant, where outputs are not finite numbers. Each is a failed
            gate; that all others are finite is not said.
        max_drop: The accuracy that a variant may lose against PEFT, as a share.
    """
    gates = [
        Gate.at_most(
            f"parity {p.adapter}",
            p.max_difference,
            p.allowed,
            "logit",
            broken=p.not_finite or p.other_tokens or ("" if p.changes_output else "the adapter changes nothing"),
        )
        for p in parity
    ]
    if base_restored is not None:
        gates.append(Gate.holds("base restored bit for bit", base_restored))
    for row in accuracy:
        gates += _accuracy_gates(row, max_drop)
    gates += [
        Gate.holds(f"finite outputs {adapter or '(base)'} {variant}", False, where)
        for (adapter, variant), where in not_finite.items()
    ]
    return tuple(gates)


def _accuracy_gates(row: Accuracy, max_drop: float) -> list[Gate]:
    if row.peft is not None and row.peft.error is not None and row.spread is not None:
        return [
            Gate.at_most(
                f"mean error {row.adapter} {row.variant}",
                row.error,
                row.peft.error + max_drop * row.spread,
                "",
                broken=row.broken,
            )
        ]
    if row.peft is None or row.peft_accuracy is None:
        return [Gate.holds(f"finite outputs {row.name} {row.variant} on {row.data}", False, row.broken)] * bool(
            row.not_finite
        )
    gates = [
        Gate.at_least(
            f"accuracy {row.adapter} {row.variant}",
            row.accuracy,
            row.peft_accuracy - max_drop,
            "share",
            broken=row.broken,
        )
    ]
    if row.variant == "fp32" and row.peft.same_label is not None:
        gates.append(
            Gate.at_least(
                f"same label as PEFT {row.adapter}",
                float(row.peft.same_label),
                float(row.rows),
                "rows",
                broken=row.broken,
            )
        )
    return gates


def validation_tables(result: Validation) -> list[Table]:
    """What was compared, for people."""
    return [
        *_compared_with_peft(result),
        *quality_tables(result.metrics, result.comparisons),
        *generalization_table(result.generalization),
    ]


def _compared_with_peft(result: Validation) -> list[Table]:
    tables = []
    if result.parity:
        tables.append(
            Table(
                "Parity with PEFT on ragged padded batches, computing in fp32",
                ("adapter", "max |difference|", "allowed", "changes the output"),
                tuple(
                    (p.adapter or "(base)", p.max_difference, p.allowed, "yes" if p.changes_output else "NO")
                    for p in result.parity
                ),
            )
        )
    if result.accuracy:
        columns = ("adapter", "variant", "data", "rows", "ONNX", "PyTorch", "same label", "max |difference|")
        labelled = [a for a in result.accuracy if a.error is None]
        numbers = [a for a in result.accuracy if a.error is not None]
        if numbers:
            tables.append(
                Table(
                    "Mean |error| of numbers",
                    ("adapter", "variant", "data", "rows", "ONNX", "PyTorch", "max |difference|"),
                    tuple(
                        (
                            a.name,
                            a.variant,
                            a.data,
                            a.rows,
                            a.error,
                            None if a.peft is None else a.peft.error,
                            None if a.peft is None else a.peft.max_difference,
                        )
                        for a in numbers
                    ),
                )
            )
        if not labelled:
            return tables
        tables.append(
            Table(
                "Accuracy",
                columns,
                tuple(
                    (
                        a.name,
                        a.variant,
                        a.data,
                        a.rows,
                        a.accuracy,
                        a.peft_accuracy,
                        None if a.peft is None else a.peft.same_label,
                        None if a.peft is None else a.peft.max_difference,
                    )
                    for a in labelled
                ),
            )
        )
    return tables
