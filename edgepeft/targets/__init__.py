"""Targets: kinds of device, their budgets, and what a gate can say about them."""

from __future__ import annotations

from .load import list_targets, load_target, shipped_folder
from .results import MB, Cell, Gate, Report, Table, Verdict, overall
from .schema import Budgets, CheckRules, Machine, RuntimeRules, Shape, Target, host_machine, parse_shape

__all__ = [
    "MB",
    "Budgets",
    "Cell",
    "CheckRules",
    "Gate",
    "Machine",
    "Report",
    "RuntimeRules",
    "Shape",
    "Table",
    "Target",
    "Verdict",
    "host_machine",
    "list_targets",
    "load_target",
    "overall",
    "parse_shape",
    "shipped_folder",
]
