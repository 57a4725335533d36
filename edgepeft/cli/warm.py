"""``edgepeft warm``: a bundle's graphs packed for this processor, so that they open fast and small."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option

from .guarded import guarded
from .options import bundle_argument, json_option
from .show import megabytes, print_json, steps


@cloup.command()
@bundle_argument
@option("--variant", metavar="NAME", show_default="as run chooses it", help="The precision to pack.")
@json_option
@guarded
def warm(bundle: Path, variant: str | None, as_json: bool) -> None:
    """Pack a bundle for this processor, in the cache.

    Every later open on this machine maps the packed weights from there, in less time and with little memory of its own. It is made
    again for another version of ONNX Runtime or other weights; `edgepeft cache list` shows it, and what was used longest ago is
    removed beyond 20 GB.
    """
    from ..bundle import read_bundle
    from ..quantize.recipes import preferred_variant
    from ..runtime.warm import warm as run

    opened = read_bundle(bundle)
    writes = opened.manifest.task.endswith("-generation")
    chosen = variant or preferred_variant(opened.manifest.variants, writes=writes)
    with steps() as announce:
        announce(f"packing {chosen} for this processor")
        result = run(opened, chosen)
    if as_json:
        folders = [str(folder) for folder in result.folders]
        print_json({"variant": chosen, "folders": folders, "bytes": result.bytes, "made": result.made})
        return
    done = "packed" if result.made else "was packed already"
    click.echo(f"{bundle}: {chosen} {done}, {megabytes(result.bytes)} in {', '.join(map(str, result.folders))}")
