"""``edgepeft web``: a bundle in a browser."""

from __future__ import annotations

import click

from ..options import Group
from .prepare import prepare
from .serve import serve


@click.group(cls=Group)
def web() -> None:
    """Run a bundle in a browser, with ONNX Runtime Web."""


for _command in (prepare, serve):
    web.add_command(_command)
