"""Parity with PEFT, and quality on rows with right answers."""

from .gates import PARITY_TOLERANCE
from .language_rows import LanguageRows, read_language_rows
from .result import AdapterParity, Validation
from .run import validate, validation_report

__all__ = [
    "PARITY_TOLERANCE",
    "AdapterParity",
    "LanguageRows",
    "Validation",
    "read_language_rows",
    "validate",
    "validation_report",
]
