"""``edgepeft web``: a bundle in a browser."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Command, Group, bundle_argument, guarded, json_option, lock_option, option, print_json
from .show import megabytes, steps


@click.group(cls=Group)
def web() -> None:
    """Run a bundle in a browser, with ONNX Runtime Web."""


@web.command(cls=Command)
@bundle_argument
@option("--variant", section="What", metavar="NAME", help="The variant to prepare.  [default: every variant]")
@lock_option
@json_option
@guarded
def prepare(bundle: Path, variant: str | None, lock_timeout: float, as_json: bool) -> None:
    """Write graphs whose slots are plain inputs.

    ONNX Runtime Web cannot override initializers. The second graph of a variant shares its weights file; it is compared
    with the first one, base and every adapter, before it is written. The adapters are unchanged and serve both.
    """
    from ..pipeline import write_input_style

    with steps() as announce:
        result = write_input_style(bundle, variant, lock_timeout=lock_timeout, announce=announce)
    files = {n: v.input_file for n, v in result.manifest.variants.items() if v.input_file is not None}
    sizes = {name: result.manifest.files[file].bytes for name, file in files.items()}
    if as_json:
        print_json({"bundle": str(bundle), "files": files, "bytes": sizes})
        return
    for name, file in files.items():
        click.echo(f"{bundle}: {name} has {file} ({megabytes(sizes[name])} over the same weights)")


@web.command(cls=Command)
@bundle_argument
@option(
    "--variant", section="What", metavar="NAME", help="The variant the page opens first.  [default: int8, else fp32]"
)
@option(
    "--port", section="Where", type=click.IntRange(0, 65535), default=8765, help="Port on localhost; 0: any free one."
)
@guarded
def serve(bundle: Path, variant: str | None, port: int) -> None:
    """Serve a page on localhost to try a bundle.

    Type a text, switch adapters, see outputs and milliseconds. Everything runs in the browser. Ctrl-C stops it. ONNX
    Runtime Web is fetched once with npm, at the versions that are pinned.
    """
    from ..devices.executors.web import demo_site

    with steps() as announce:
        site = demo_site(bundle, variant, port, announce)
    with site:
        click.echo(f"{site.url}{site.start}  (Ctrl-C stops it)")
        site.wait()
