"""The GitHub Action: its own steps, run by bash with the variables that GitHub sets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.e2e

ACTION = Path(__file__).parents[2] / "action.yml"
TARGET = """
name = "here"
summary = "this machine"
extends = "linux-x64-cpu"
[budgets.p50_ms]
"1x8" = {budget}
[check]
min_rounds = 3
max_rounds = 3
"""


class Job:
    """Runs the shell steps of the action in order, as a runner would."""

    def __init__(self, folder: Path, inputs: dict[str, str]) -> None:
        self.action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
        defaults = {name: str(given.get("default", "")) for name, given in self.action["inputs"].items()}
        self.inputs = defaults | {"token": ""} | inputs
        self.folder = folder
        self.outputs: dict[str, dict[str, str]] = {}
        self.log = ""

    def value(self, text: str) -> str:
        """``text`` with each expression that the steps use replaced."""

        def known(found: re.Match[str]) -> str:
            room, _, name = found[1].strip().partition(".")
            if room == "inputs":
                return self.inputs[name]
            if room == "steps":
                step, _, output = name.partition(".outputs.")
                return self.outputs[step].get(output, "")
            return {"runner.temp": str(self.folder), "github.action_path": str(ACTION.parent)}.get(
                found[1].strip(), "x"
            )

        return re.sub(r"\$\{\{(.+?)\}\}", known, text)

    def run(self) -> int:
        """The exit code of the job: that of the first step which fails."""
        for step in self.action["runs"]["steps"]:
            if "run" not in step or step["name"] == "Install edgepeft":
                continue
            assert step["shell"] == "bash"
            assert "${{" not in step["run"], "an input in a script's text could be code"
            output = self.folder / f"output-{step['name']}"
            output.touch()
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                env={
                    **os.environ,
                    **{name: self.value(text) for name, text in step["env"].items()},
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "GITHUB_OUTPUT": str(output),
                    "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
                },
                capture_output=True, text=True, check=False, cwd=self.folder,
            )  # fmt: skip
            self.log += done.stdout + done.stderr
            lines = (line.partition("=") for line in output.read_text(encoding="utf-8").splitlines())
            self.outputs[step.get("id", step["name"])] = {name: value for name, _, value in lines}
            if done.returncode:
                return done.returncode
        return 0


@pytest.fixture
def inputs(bundle: Path, rows: Path, tmp_path: Path) -> dict[str, str]:
    target = tmp_path / "here.toml"
    target.write_text(TARGET.format(budget=10_000), encoding="utf-8")
    return {
        "bundle": str(bundle), "baseline": str(bundle), "target": str(target), "key": "here", "data": f"reviews={rows}\n",
        "arguments": "--shape 1x8 --adapter reviews",
    }  # fmt: skip


def test_a_bundle_against_itself(inputs: dict[str, str], tmp_path: Path) -> None:
    job = Job(tmp_path, inputs)
    assert job.run() == 0, job.log
    folder = Path(job.outputs["check"]["report"])
    assert {path.name for path in folder.iterdir()} == {"check.json", "check.md", "check.junit.xml", "report.html"}
    verdict = json.loads((folder / "check.json").read_text(encoding="utf-8"))["verdict"]
    assert job.outputs["publish"]["verdict"] == verdict
    # Three rounds may be too few to decide; a warning is all that comes of it.
    assert job.outputs["check"]["code"] == {"pass": "0", "inconclusive": "3"}[verdict]
    assert (tmp_path / "summary.md").read_text(encoding="utf-8").startswith("# Check of")
    assert "Accuracy" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_missed_budget_fails_the_job_after_everything_was_shown(inputs: dict[str, str], tmp_path: Path) -> None:
    Path(inputs["target"]).write_text(TARGET.format(budget=0.000001), encoding="utf-8")
    job = Job(tmp_path, inputs)
    assert job.run() == 1, job.log
    assert "::error title=edgepeft%3A p50 fp32/reviews 1x8::" in job.log
    assert "❌ fail" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_a_wrong_call_is_no_verdict(inputs: dict[str, str], tmp_path: Path) -> None:
    job = Job(tmp_path, {**inputs, "bundle": str(tmp_path / "none")})
    assert job.run() == 2
    assert "none" in job.log
    assert not (tmp_path / "summary.md").exists()


@pytest.mark.parametrize(
    ("code", "inconclusive", "ends"), [("3", "warn", 0), ("3", "fail", 3), ("0", "fail", 0), ("1", "warn", 1)]
)
def test_what_an_inconclusive_check_does_is_chosen(code: str, inconclusive: str, ends: int) -> None:
    action: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    (step,) = (step for step in action["runs"]["steps"] if step.get("name") == "Verdict")
    done = subprocess.run(["bash", "-c", step["run"]], env={"CODE": code, "INCONCLUSIVE": inconclusive}, check=False)
    assert done.returncode == ends
