"""``edgepeft build``: a file that says how a bundle is made, and the steps of it that something changed for."""

from __future__ import annotations

from .plan import Recipe, Step, read_recipe
from .run import StepResult, build

__all__ = ["Recipe", "Step", "StepResult", "build", "read_recipe"]
