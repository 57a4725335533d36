"""``edgepeft web serve``: a page on localhost to try a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ..guarded import guarded
from ..options import Command, bundle_argument, option
from ..show import steps


@click.command(cls=Command)
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
    from ...devices.executors.web import demo_site

    with steps() as announce:
        site = demo_site(bundle, variant, port, announce)
    with site:
        click.echo(f"{site.url}{site.start}  (Ctrl-C stops it)")
        site.wait()
