"""The documentation: it builds strictly, README fits a screen, and every command in it is one that edgepeft takes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgepeft.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"cli.md", "api.md"}


def test_it_builds_strictly(tmp_path: Path) -> None:
    """A dead link, a missing anchor or a page that the navigation lacks fails it."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        name = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (tmp_path / "site" / name).is_file()
    assert not list((tmp_path / "site").rglob("*.py"))
    # nothing is fetched from others when a page is looked at
    start = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert not re.findall(
        r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!edgepeft\.github\.io)[^"]+\.(?:js|css|png|svg)"', start
    )


def test_readme_fits_a_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 200


def commands(page: Path) -> list[list[str]]:
    """The calls of edgepeft in a page's shell blocks, as the shell would split them."""
    blocks = re.findall(
        r"^```(?:sh|shell|bash|console)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    found = []
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for start in (place for place, word in enumerate(words) if word == "edgepeft"):
            if start == 0 or words[start - 1] in {"&&", ";", "|"} or "=" in words[start - 1]:
                call = words[start + 1 :]
                end = next(
                    (place for place, word in enumerate(call) if word in {"&&", ";", "|", ">", "||", "2>", "<"}),
                    len(call),
                )
                found.append(call[:end])
    return found


CALLS = [
    pytest.param(call, id=f"{page.name}: {' '.join(call)[:60]}")
    for page in PAGES
    if page.name not in GENERATED
    for call in commands(page)
]


def test_there_are_commands_to_check() -> None:
    assert len(CALLS) > 40


@pytest.mark.parametrize("call", CALLS)
def test_the_command_is_taken(call: list[str]) -> None:
    """Its name, its options and their values; what the files hold is for the tests of the commands."""
    command: click.Command = main
    context = click.Context(main, info_name="edgepeft")
    words = list(call)
    while isinstance(command, click.Group):
        assert words, "a group alone does nothing"
        name = words.pop(0)
        if name.startswith("-"):
            return
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    command.make_context(command.name, words, context)
