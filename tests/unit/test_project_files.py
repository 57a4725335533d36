"""The files that a project is expected to have: they parse, agree with each other, and link to what exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgepeft import __version__

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/edgepeft/edgepeft"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's Markdown links, those in code blocks left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them of plain words."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_one_version() -> None:
    package = json.loads((ROOT / "targets/web/package.json").read_text(encoding="utf-8"))
    lock = json.loads((ROOT / "targets/web/package-lock.json").read_text(encoding="utf-8"))
    assert project()["version"] == __version__ == package["version"] == lock["version"]


def test_one_license() -> None:
    """The Python and the npm package carry the same whole text."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert (ROOT / "targets/web/LICENSE").read_text(encoding="utf-8") == text
    assert project()["license-files"] == ["LICENSE", "NOTICE"]
    assert (ROOT / "NOTICE").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files of the repository name files that exist, and anchors name headings."""
    for link in links(page):
        local = link.removeprefix(f"{REPOSITORY}/blob/main/")
        if local.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = local.partition("#")
        start = ROOT if local != link else page.parent
        target = (start / path) if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_readme_links_work_on_pypi() -> None:
    """PyPI shows README away from the repository: a relative link leads nowhere there."""
    relative = [link for link in links(ROOT / "README.md") if not link.startswith(("https://", "#"))]
    assert relative == []


def test_yaml_files_parse() -> None:
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / "action.yml"]
    assert len(files) >= 6
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict), file


def test_a_release_stores_no_token() -> None:
    """Publishing goes through OpenID Connect, and only after the build's checks."""
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert "secrets." not in text
    for registry in ("pypi", "npm"):
        assert jobs[registry]["permissions"]["id-token"] == "write"
        assert jobs[registry]["needs"] == "build"


def test_tested_pythons_are_declared() -> None:
    """The classifiers name the versions that the test workflow runs."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    declared = [each.removeprefix(prefix) for each in project()["classifiers"] if each.startswith(prefix)]
    assert [each for each in declared if "." in each] == tested


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_as_documented(shell: str) -> None:
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert f"_EDGEPEFT_COMPLETE={shell}_source edgepeft" in page
    from click.shell_completion import get_completion_class

    if shell == "bash":  # click asks the bash of the machine for its version; what it completes is the same everywhere
        environment = {
            **os.environ,
            "_EDGEPEFT_COMPLETE": "bash_complete",
            "COMP_WORDS": "edgepeft qu",
            "COMP_CWORD": "1",
        }
        command = [sys.executable, "-c", "from edgepeft.cli import main; main(prog_name='edgepeft')"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["plain,quantize"]
    assert get_completion_class(shell) is not None


def test_test_files_have_names_of_their_own() -> None:
    """Folders of tests that are no packages are one namespace to pytest: a name that stands twice breaks the run of all."""
    tests = ROOT / "tests"
    names = [
        path.name
        for path in tests.rglob("*.py")
        if path.name != "conftest.py" and not (path.parent / "__init__.py").exists()
    ]
    assert len(names) > 100
    assert sorted({name for name in names if names.count(name) > 1}) == []
