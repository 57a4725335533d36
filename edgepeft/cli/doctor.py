"""``edgepeft doctor``: what this machine and environment have."""

from __future__ import annotations

from dataclasses import asdict

import click
import cloup

from .guarded import guarded
from .options import json_option
from .show import print_json


@cloup.command()
@json_option
@guarded
def doctor(as_json: bool) -> None:
    """Say what this machine and environment have.

    Versions, CPU, extras and executors, with what brings those that are missing: paste it into a bug report. The home folder's
    name is left out. `edgepeft targets doctor TARGET` looks at one target.
    """
    from ..doctor import environment

    found = environment()
    if as_json:
        print_json(asdict(found))
        return
    memory = "" if found.memory_mb is None else f", {found.memory_mb / 1e3:.1f} GB memory"
    lines = [
        ("edgepeft", found.edgepeft),
        ("python", f"{found.python} ({found.python_path})"),
        ("system", f"{found.system}, {found.machine}"),
        ("cpu", f"{found.cpu}, {found.cores} cores{memory}"),
        ("features", " ".join(found.cpu_features) or "not known on this system"),
        ("providers", " ".join(found.onnxruntime_providers)),
        ("packages", " ".join(f"{name}={version}" for name, version in found.packages.items())),
        ("cache", found.cache + ("" if found.free_mb is None else f", {found.free_mb / 1e3:.1f} GB free")),
        ("settings", " ".join(f"{name}={value}" for name, value in found.variables.items()) or "none"),
    ]
    for name, value in lines:
        click.echo(f"{name:<10} {value}")
    click.echo("extras")
    for extra, missing in found.extras.items():
        lacks = f"missing {', '.join(missing)}: pip install 'edgepeft[{extra}]'" if missing else "installed"
        if extra == "kernels" and found.kernels:
            lacks += f": {found.kernels}"
        click.echo(f"  {extra:<8} {lacks}")
    click.echo("executors")
    for executor in found.executors:
        click.echo(f"  {executor.name:<8} {executor.summary}: {'ready' if executor.ready else 'not ready'}")
        for what, remedy in executor.missing:
            click.echo(f"           missing {what}{': ' + remedy if remedy else ''}")
    for problem in found.problems:
        click.secho(f"problem: {problem}", fg="yellow")
