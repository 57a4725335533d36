"""Parity with PEFT and accuracy on labelled data."""

from .gates import PARITY_TOLERANCE
from .result import AdapterParity, Validation
from .run import validate, validation_report

__all__ = [
    "PARITY_TOLERANCE",
    "AdapterParity",
    "Validation",
    "validate",
    "validation_report",
]
