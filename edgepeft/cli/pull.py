"""``edgepeft pull``: a bundle from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click
import cloup
from cloup import option, option_group

from .guarded import guarded
from .options import PATH, json_option, lock_option
from .show import megabytes, print_json, steps


@cloup.command()
@click.argument("repo")
@option_group(
    "What",
    option("--out", type=PATH, required=True, help="The bundle folder to write; an old bundle there is replaced."),
    option("--revision", metavar="REVISION", show_default="main", help="A branch, tag or commit; a commit pins it."),
)
@lock_option
@json_option
@guarded
def pull(repo: str, out: Path, revision: str | None, lock_timeout: float, as_json: bool) -> None:
    """Download a bundle from the Hugging Face hub.

    REPO is OWNER/NAME. Only what the manifest lists is fetched, and every file is verified before the folder takes its place.
    """
    from ..hub import pull as run

    with steps() as announce:
        bundle = run(repo, out, revision=revision, lock_timeout=lock_timeout, announce=announce)
    manifest = bundle.manifest
    if as_json:
        print_json({"bundle": str(out), "variants": list(manifest.variants), "adapters": list(manifest.adapters)})
        return
    click.echo(
        f"{out}: {megabytes(bundle.size())}, variants {', '.join(manifest.variants)}, "
        f"adapters {', '.join(manifest.adapters) or 'none'}"
    )
