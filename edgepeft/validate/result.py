"""What validation returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

#: max |logit difference| against PEFT fp32 that an fp32 variant may show; see base/check.py for where it comes from.
PARITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class AdapterParity:
    """One adapter (``None``: the base) against PEFT on ragged padded batches."""

    adapter: str | None
    #: max |difference| of the outputs, relative where they exceed 1.
    max_difference: float
    #: Whether the adapter changes the base's output at all; one that does nothing passes no check of value.
    changes_output: bool


@dataclass(frozen=True)
class AdapterAccuracy:
    """One adapter and variant on labelled rows."""

    adapter: str | None
    variant: str
    data: str
    rows: int
    accuracy: float
    #: Accuracy of the same rows under PEFT, where it was asked for.
    reference_accuracy: float | None = None
    #: Rows where ONNX Runtime and PEFT choose the same label.
    same_argmax: int | None = None
    #: max |logit difference| over all rows.
    max_difference: float | None = None


@dataclass(frozen=True)
class Validation:
    """What :func:`validate` measured; ``problems`` says in words what failed, empty when all holds."""

    bundle: str
    parity: tuple[AdapterParity, ...] = ()
    base_restored: bool | None = None
    accuracy: tuple[AdapterAccuracy, ...] = ()
    problems: tuple[str, ...] = field(default_factory=tuple)
    #: Adapters that were not compared with PEFT, because their checkpoint is not at hand.
    unchecked: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check that was made holds."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}
