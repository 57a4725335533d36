"""Targets: kinds of device, their budgets, and what a gate can say about them."""

from __future__ import annotations

from .load import list_targets, load_target, shipped_folder
from .schema import (
    Budgets,
    CheckRules,
    GeneralizationRules,
    Machine,
    RuntimeRules,
    Shape,
    Target,
    host_machine,
    parse_shape,
)

__all__ = [
    "Budgets",
    "CheckRules",
    "GeneralizationRules",
    "Machine",
    "RuntimeRules",
    "Shape",
    "Target",
    "host_machine",
    "list_targets",
    "load_target",
    "parse_shape",
    "shipped_folder",
]
