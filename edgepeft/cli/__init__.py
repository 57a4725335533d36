"""The command line: parse, call one function, print."""

from __future__ import annotations

import click

from .. import __version__
from .build import add, export, quantize
from .learn import demo, train
from .measure import bench, check, targets, validate
from .use import inspect, run


class _Ordered(click.Group):
    """Commands in the order a user meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgepeft")
def main() -> None:
    """Deploy PEFT-adapted transformer models on edge devices through ONNX Runtime.

    Exit codes: 0 good, 1 a gate failed, 2 the call was wrong, 3 a measurement was inconclusive.
    """


for _command in (train, export, add, quantize, run, inspect, validate, bench, check, targets, demo):
    main.add_command(_command)
