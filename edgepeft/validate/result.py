"""What validation returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..base.rounding import TOLERANCE
from ..json_text import finite_json
from ..metrics import Comparison, Measured
from ..report.accuracy import Accuracy
from ..report.gate import Gate
from .generalization import Generalization


@dataclass(frozen=True)
class AdapterParity:
    """One adapter (``None``: the base) against PEFT on ragged padded batches."""

    adapter: str | None
    #: max |difference| of the outputs, relative where they exceed 1; infinite where either side is not finite.
    max_difference: float
    #: Whether the adapter changes the base's output at all; one that does nothing passes no check of value.
    changes_output: bool
    #: Whose outputs are not finite numbers, in words; empty where all are.
    not_finite: str = ""
    #: Where the tokens of texts differ from those of the adapter's own tokenizer, in words; empty where they are the same.
    other_tokens: str = ""
    #: The largest ``max_difference`` that passes: ``TOLERANCE``, or what PEFT's own rounding explains.
    allowed: float = TOLERANCE
    #: How PEFT's own rounding was measured, and how large it is; empty where the difference is within ``TOLERANCE`` anyway.
    noise: str = ""


@dataclass(frozen=True)
class Validation:
    """What :func:`validate` measured, and a gate for each claim."""

    bundle: str
    parity: tuple[AdapterParity, ...] = ()
    base_restored: bool | None = None
    accuracy: tuple[Accuracy, ...] = ()
    gates: tuple[Gate, ...] = ()
    #: Adapters that were not compared with PEFT, because their checkpoint is not at hand.
    unchecked: tuple[str, ...] = ()
    #: Every metric of each adapter and variant on its data, with its interval.
    metrics: tuple[Measured, ...] = ()
    #: Variants against fp32 (or the first) on the same rows, Holm-corrected.
    comparisons: tuple[Comparison, ...] = ()
    #: Each adapter in its domain and out of it, where general rows were given.
    generalization: tuple[Generalization, ...] = ()
    #: What a reader must know: metrics that were left out, and what looks wrong though no gate fails.
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check that was made holds."""
        return all(gate.ok for gate in self.gates)

    @property
    def problems(self) -> tuple[str, ...]:
        """What failed, in words; empty when all holds."""
        return tuple(": ".join(filter(None, (gate.name, gate.message))) for gate in self.gates if not gate.ok)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = finite_json(
            {
                "bundle": self.bundle,
                "parity": [asdict(each) for each in self.parity],
                "base_restored": self.base_restored,
                "accuracy": [_accuracy(each) for each in self.accuracy],
                "metrics": [each.as_dict() for each in self.metrics],
                "comparisons": [each.as_dict() for each in self.comparisons],
                "generalization": [each.as_dict() for each in self.generalization],
                "problems": self.problems,
                "notes": self.notes,
                "unchecked": self.unchecked,
                "passed": self.passed,
            }
        )
        return found


def _accuracy(row: Accuracy) -> dict[str, Any]:
    peft = row.peft
    return {
        "adapter": row.adapter,
        "variant": row.variant,
        "data": row.data,
        "rows": row.rows,
        "accuracy": row.accuracy,
        "reference_accuracy": row.peft_accuracy,
        "same_argmax": None if peft is None else peft.same_label,
        "max_difference": None if peft is None else peft.max_difference,
        **({} if row.error is None else {"error": row.error, "reference_error": None if peft is None else peft.error}),
    }
