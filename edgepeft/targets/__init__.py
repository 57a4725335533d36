"""Targets: kinds of device, their budgets, and what a gate can say about them.

Names are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .load import list_targets as list_targets
    from .load import load_target as load_target
    from .load import shipped_folder as shipped_folder
    from .schema import Budgets as Budgets
    from .schema import CheckRules as CheckRules
    from .schema import GeneralizationRules as GeneralizationRules
    from .schema import Machine as Machine
    from .schema import RuntimeRules as RuntimeRules
    from .schema import Target as Target
    from .schema import host_machine as host_machine
    from .shape import Shape as Shape
    from .shape import parse_shape as parse_shape

#: Where each name lives.
_HOME = {
    "Budgets": ".schema",
    "CheckRules": ".schema",
    "GeneralizationRules": ".schema",
    "Machine": ".schema",
    "RuntimeRules": ".schema",
    "Shape": ".shape",
    "Target": ".schema",
    "host_machine": ".schema",
    "list_targets": ".load",
    "load_target": ".load",
    "parse_shape": ".shape",
    "shipped_folder": ".load",
}

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

__getattr__, __dir__ = lazy_names(__name__, _HOME)
