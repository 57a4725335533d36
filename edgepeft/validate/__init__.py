"""Parity with PEFT and accuracy on labelled data."""

from .form import PARITY_TOLERANCE, AdapterAccuracy, AdapterParity, Validation
from .run import validate

__all__ = ["PARITY_TOLERANCE", "AdapterAccuracy", "AdapterParity", "Validation", "validate"]
