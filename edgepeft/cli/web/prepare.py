"""``edgepeft web prepare``: graphs whose slots are plain inputs."""

from __future__ import annotations

from pathlib import Path

import click

from ..guarded import guarded
from ..options import Command, bundle_argument, json_option, option
from ..show import megabytes, print_json, steps


@click.command(cls=Command)
@bundle_argument
@option("--variant", section="What", metavar="NAME", help="The variant to prepare.  [default: every variant]")
@json_option
@guarded
def prepare(bundle: Path, variant: str | None, as_json: bool) -> None:
    """Write graphs whose slots are plain inputs.

    ONNX Runtime Web cannot override initializers. The second graph of a variant shares its weights file; it is compared
    with the first one, base and every adapter, before it is written. The adapters are unchanged and serve both.
    """
    from ...pipeline import write_input_style

    with steps() as announce:
        result = write_input_style(bundle, variant, announce=announce)
    files = {n: v.input_file for n, v in result.manifest.variants.items() if v.input_file is not None}
    sizes = {name: result.manifest.files[file].bytes for name, file in files.items()}
    if as_json:
        print_json({"bundle": str(bundle), "files": files, "bytes": sizes})
        return
    for name, file in files.items():
        click.echo(f"{bundle}: {name} has {file} ({megabytes(sizes[name])} over the same weights)")
