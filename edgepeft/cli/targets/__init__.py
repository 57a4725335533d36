"""``edgepeft targets``: kinds of device, what runs them, and bundles for them."""

from __future__ import annotations

import click

from ..options import Group
from .compare import compare
from .coverage import coverage
from .doctor import doctor
from .freeze import freeze
from .list import list_
from .pack import pack
from .setup import setup
from .show import show


@click.group(cls=Group)
def targets() -> None:
    """List kinds of device, their budgets, what runs them."""


for _command in (list_, show, doctor, pack, compare, coverage, freeze, setup):
    targets.add_command(_command)
