"""``edgepeft push``: a bundle to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import cloup
from cloup import option, option_group

from .guarded import guarded
from .options import bundle_argument, json_option
from .show import print_json, steps


@cloup.command()
@bundle_argument
@click.argument("repo")
@option_group(
    "How",
    option("--private", is_flag=True, help="Make a new repository private."),
    option("--license", metavar="ID", help="Licence for the model card, such as apache-2.0."),
    option("--revision", metavar="BRANCH", show_default="main", help="The branch to commit to."),
    option("--message", default="Upload an edgepeft bundle", metavar="TEXT", help="The commit's message."),
)
@json_option
@guarded
def push(
    bundle: Path, repo: str, private: bool, license: str | None, revision: str | None, message: str, as_json: bool
) -> None:
    """Upload a bundle to the Hugging Face hub.

    REPO is OWNER/NAME, made where it is not there. Every file is verified first; README.md becomes a model card of what the
    bundle holds and what `edgepeft validate` measured. Log in with `hf auth login` or HF_TOKEN.
    """
    from ..hub import push as run

    with steps() as announce:
        done = run(
            bundle, repo, private=private, license=license, revision=revision, message=message, announce=announce
        )
    if as_json:
        print_json(asdict(done))
        return
    click.echo(f"{bundle}: {done.files} files at {done.url}, commit {done.commit[:12]}")
