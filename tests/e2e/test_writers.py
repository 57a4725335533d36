"""Several commands change one bundle at once, and others open it all the time: nothing is lost, and no open fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepeft.bundle import locked, read_bundle

from .conftest import call, snapshot

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform == "win32", reason="the stress forks")]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "writers.py"


def stress(bundle: Path, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, SCRIPT, bundle, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("rounds", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_is_lost_and_no_open_fails(rounds: int, exported: Path, adapters: dict[str, Path]) -> None:
    found = stress(exported, "--rounds", rounds, "--checkpoint", adapters["register"])
    assert found["rounds"] == rounds
    assert found["opens"] > rounds, "too few opens; they test nothing"
    assert (found["lost"], found["writers_failed"], found["opens_failed"]) == (0, 0, 0)


@pytest.mark.parametrize("rounds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_one_of_two_writers_is_killed(rounds: int, exported: Path) -> None:
    killing = stress(exported, "--kills", rounds, "--seed", rounds)["killing"]
    assert killing["kills"] >= 1, "none of the kills hit; they test nothing"
    assert (killing["broken"], killing["left_behind"]) == (0, [])


@pytest.mark.parametrize(
    "command",
    ["add", "blend", "quantize", "remove", "web prepare", "targets pack", "export"],
)
def test_every_command_says_when_it_waited_long_enough(
    command: str, bundle: Path, encoder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    source = f"--adapter=register={adapters['register']}"
    arguments: dict[str, list[object]] = {
        "add": [bundle, source],
        "blend": [bundle, "reviews=1", "--out", "mix"],
        "quantize": [bundle, "--variant", "int8"],
        "remove": [bundle, "--adapter", "movies"],
        "web prepare": [bundle],
        "targets pack": [bundle, "--target", "linux-x64-cpu", "--out", bundle],
        "export": ["--model", encoder, source, "--out", bundle],
    }
    before = snapshot(bundle)
    with locked(bundle):
        done = call(*command.split(), *arguments[command], "--lock-timeout", 0.1, "--json")
    assert done.exit_code == 2, done.output
    said = json.loads(done.stdout)
    assert said["type"] == "BusyBundleError"
    assert f"{bundle.resolve()} is being changed by another process, and 0.1 s were not enough" in said["error"]
    assert snapshot(bundle) == before


def test_remove(bundle: Path) -> None:
    call("quantize", bundle, "--variant", "int8")
    done = call("remove", bundle, "--variant", "int8", "--json")
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said["files"][0] == "onnx/model_int8.onnx"
    assert said["bytes"] > 0
    done = call("remove", bundle, "--adapter", "movies")
    assert done.exit_code == 0
    assert "removed movies (2 files, " in done.stdout
    assert list(read_bundle(bundle).manifest.adapters) == ["reviews"]
    for arguments, said in (
        ([], "name what to remove"),
        (["--adapter", "movies"], "has no adapter 'movies'; it has: reviews"),
        (["--variant", "fp32"], "is the only variant"),
        (["--adapter", "reviews", "--variant", "fp32"], "name what to remove"),
    ):
        done = call("remove", bundle, *arguments)
        assert done.exit_code == 2
        assert said in done.stderr
    read_bundle(bundle).verify()


def test_a_report_written_beside_a_writer_stays(bundle: Path, adapters: dict[str, Path]) -> None:
    """A report goes into the bundle's folder, which a writer exchanges."""
    import threading

    from edgepeft.pipeline._edit import edit

    started, go = threading.Event(), threading.Event()

    def write() -> None:
        with edit(bundle) as change:
            change.stage(provenance={**change.manifest.provenance, "note": "changed"})
            started.set()
            go.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    assert started.wait(30)
    timer = threading.Timer(0.5, go.set)
    timer.start()
    done = call("validate", bundle, "--no-reference")
    writer.join(30)
    timer.join()
    assert done.exit_code in (0, 3), done.output
    assert (bundle / "report" / "validate.json").is_file()
    assert read_bundle(bundle).manifest.provenance["note"] == "changed"
