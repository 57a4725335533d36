"""Parity with PEFT and accuracy on labelled data."""

from .present import validation_report
from .result import PARITY_TOLERANCE, AdapterAccuracy, AdapterParity, Validation
from .run import validate

__all__ = [
    "PARITY_TOLERANCE",
    "AdapterAccuracy",
    "AdapterParity",
    "Validation",
    "validate",
    "validation_report",
]
