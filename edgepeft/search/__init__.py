"""``edgepeft search``: many pipeline runs over data, model, method, rank and recipe, and the front of what they reach.

Importing this package is light; Optuna loads when a study is opened, torch when a trial runs.
"""

from __future__ import annotations

from .front import Found, TrialRow
from .study import run_study
from .study_file import Choice, Range, StudyFile, read_study

__all__ = ["Choice", "Found", "Range", "StudyFile", "TrialRow", "read_study", "run_study"]
