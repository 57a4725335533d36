"""``edgepeft targets``: kinds of device, what runs them, and bundles for them."""

from __future__ import annotations

from cloup import Section, group

from .compare import compare
from .coverage import coverage
from .doctor import doctor
from .freeze import freeze
from .list import list_
from .pack import pack
from .setup import setup
from .show import show


@group(sections=[Section("Commands", [list_, show, doctor, pack, compare, coverage, freeze, setup])])
def targets() -> None:
    """List kinds of device, their budgets, what runs them."""
