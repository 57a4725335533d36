"""What CI systems and Docker read, held against their schemas and by linters: none of it can be run here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def said(*command: object) -> tuple[int, str]:
    """Exit code and output of a tool of this environment; the test is skipped where it is not installed."""
    name = str(command[0])
    tool = shutil.which(name, path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip(f"{name} is not installed here; pip install -e '.[dev]' brings it where it has a wheel")
    done = subprocess.run(
        [tool, *map(str, command[1:])], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-actions", [ROOT / "action.yml"]),
        ("github-issue-forms", [ROOT / ".github/ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]),
        ("github-issue-config", [ROOT / ".github/ISSUE_TEMPLATE/config.yml"]),
        ("gitlab-ci", [ROOT / "docs/gitlab-ci.yml"]),
    ],
)
def test_files_follow_their_schema(schema: str, files: list[Path], tmp_path: Path) -> None:
    assert files
    code, output = said("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)
    assert code == 0, output
    wrong = tmp_path / files[0].name
    wrong.write_text("- no mapping\n")
    assert said("check-jsonschema", "--builtin-schema", f"vendor.{schema}", wrong)[0] == 1


def test_no_weakness_in_workflows_and_action(tmp_path: Path) -> None:
    """Inputs in scripts, tokens that stay, caches that others can write: zizmor's audits, without the network."""
    call = ("zizmor", "--offline", "--no-progress", "--config", ROOT / ".github/zizmor.yml")
    code, output = said(*call, ROOT / "action.yml", *WORKFLOWS)
    assert code == 0, output
    weak = tmp_path / "action.yml"
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    weak.write_text(text.replace('"$BUNDLE" --baseline', "${{ inputs.bundle }} --baseline"))
    code, output = said(*call, weak)
    assert code != 0
    assert "template-injection" in output


def test_the_dockerfile(tmp_path: Path) -> None:
    code, output = said("hadolint", ROOT / "Dockerfile")
    assert code == 0, output
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /src && sudo pip install x\n")
    assert said("hadolint", wrong)[0] == 1
