"""What of a validation fails."""

from __future__ import annotations

from collections.abc import Sequence

from .result import PARITY_TOLERANCE, AdapterAccuracy, AdapterParity


def _problems(
    parity: Sequence[AdapterParity], restored: bool | None, rows: Sequence[AdapterAccuracy], max_drop: float
) -> list[str]:
    found = []
    for p in parity:
        if not p.max_difference <= PARITY_TOLERANCE:
            found.append(f"{p.adapter}: differs from PEFT by {p.max_difference:.2g} (allowed {PARITY_TOLERANCE:.0e})")
        if not p.changes_output:
            found.append(f"{p.adapter}: the adapter changes nothing")
    if restored is False:
        found.append("the base's outputs are not the same bits after the adapters were used")
    for row in rows:
        if row.reference_accuracy is not None and row.accuracy < row.reference_accuracy - max_drop:
            found.append(
                f"{row.adapter} ({row.variant}): accuracy {row.accuracy:.3f}, PEFT {row.reference_accuracy:.3f} on {row.data}"
            )
        if row.variant == "fp32" and row.same_argmax is not None and row.same_argmax != row.rows:
            found.append(
                f"{row.adapter}: {row.rows - row.same_argmax} of {row.rows} rows choose another label than PEFT"
            )
    return found
