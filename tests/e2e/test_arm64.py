"""Real aarch64 kernels under qemu: the subset that CI runs (about a minute), and the pinned MiniLM in the slow rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepeft.bench import Job, Rows, WorkerResult
from edgepeft.devices import executor_for, validate_on
from edgepeft.devices.executors import arm64 as executors
from edgepeft.devices.executors import qemu as emulators
from edgepeft.devices.executors import sysroot as sysroots
from edgepeft.devices.executors.arm64 import Arm64Executor
from edgepeft.errors import DeviceError
from edgepeft.report.gate import Verdict
from edgepeft.targets import load_target

pytestmark = pytest.mark.e2e
TARGET = "linux-arm64-cpu"


@pytest.fixture(scope="module")
def arm() -> Arm64Executor:
    """The executor, its sysroot built where Debian's tools are; skipped where they are not (CI has them)."""
    if not sysroots.is_arm_linux() and not sysroots.is_ready():
        if shutil.which("apt-get") is None:
            pytest.skip("no apt-get: the aarch64 sysroot is made of Debian packages")
        sysroots.build_sysroot()
    executor = executor_for(load_target(TARGET))
    assert isinstance(executor, Arm64Executor)
    assert executor.missing() == ()
    return executor


def test_swaps_parity_and_restored_base_on_aarch64(arm: Arm64Executor, bundle: Path, rows: Path) -> None:
    from edgepeft.data import read_examples

    report = validate_on(bundle, load_target(TARGET), data={"reviews": read_examples(rows)}, rows=4)
    found = {gate.name: gate for gate in report.gates}
    assert found["same label as PEFT reviews fp32"].value == 4
    assert found["logits against PEFT movies fp32"].verdict is Verdict.PASS
    assert found["base restored bit for bit fp32"].verdict is Verdict.PASS
    assert report.verdict is Verdict.PASS
    assert report.data["host"]["fp32"]["machine"] == "aarch64"
    if arm.emulated:
        # Other kernels than this machine's: all bits equal would mean that the emulator was not asked.
        assert max(row["native_difference"] for row in report.data["rows"]) > 0
        assert report.data["host"]["fp32"]["onnxruntime"] == "1.32.0"
        assert not any(gate.unit in {"ms", "ratio"} for gate in report.gates)


def test_a_language_model_on_aarch64(arm: Arm64Executor, generating: Path) -> None:
    """Reference: native kernels and PEFT fp32, after the same tokens; tolerance 2e-4 of the largest logit (see devices/tokens)."""
    from edgepeft.data import PromptRows

    prompts = PromptRows(("the film was not very good", "Ünïcode 👍"))
    report = validate_on(generating, load_target(TARGET), data={"*": prompts}, new_tokens=12)
    assert report.verdict is Verdict.PASS, [gate for gate in report.gates if not gate.ok]
    rows = {row["adapter"]: row for row in report.data["tokens"]}
    assert list(rows) == [None, "wide", "narrow", "prefix"]
    assert all(row["peft"]["lead"] <= 2e-4 and row["tokens"] > 12 for row in rows.values())
    # Logits of a random model lie far apart: not one of its tokens is a near-tie.
    assert all(row["native"]["same"] == row["peft"]["same"] == row["tokens"] for row in rows.values())
    assert len({row["texts"] for row in rows.values()}) == 4, "adapters change what comes"
    assert report.data["base_restored"] == {"fp32": True}
    assert report.data["host"]["fp32"]["machine"] == "aarch64"


def bytecode() -> Iterator[Path]:
    """What the emulated Python kept of this package; beside its sources there is none of it."""
    return (sysroots.sysroot_folder() / "bytecode").rglob("edgepeft/runtime/*.pyc")


def test_instructions_are_counted_and_come_again(arm: Arm64Executor, bundle: Path, tmp_path: Path) -> None:
    """Two processes count the same but for the interpreter's share, some ten thousand; adapters and longer inputs cost more.

    And the second one finds the bytecode of the first.
    """
    from edgepeft.devices import bench_on, check_on
    from edgepeft.devices.checks.emulated import NOISE
    from edgepeft.report import write_reports

    if not arm.counts:
        pytest.skip(f"instructions are not counted: {arm.uncounted}")
    cases: dict[str, Any] = {"adapters": [None, "reviews"], "shapes": ["8x1", "8x32"]}
    target = load_target(TARGET)
    report = bench_on(bundle, target, **cases)
    compiled = {file: file.stat().st_mtime_ns for file in bytecode()}
    assert compiled
    assert report.verdict is Verdict.PASS, [gate for gate in report.gates if not gate.ok]
    counts = WorkerResult.model_validate(report.data["results"]["fp32"]).counts
    least = {(count.case.adapter, count.case.sequence): count.least for count in counts}
    assert list(least) == [(name, length) for name in (None, "reviews") for length in (1, 32)]
    assert least["reviews", 32] > least[None, 32] + NOISE
    assert least[None, 32] > 2 * least[None, 1]
    assert least[None, 1] > 100_000, "an inference of a transformer is more than a reading of the counter"
    saved = write_reports(tmp_path, "bench", report).json
    checked = check_on(bundle, saved, target, **cases)
    assert all(file.stat().st_mtime_ns == written for file, written in compiled.items())
    (gate,) = [gate for gate in checked.gates if gate.name == "instructions fp32/reviews 8x32"]
    assert gate.verdict is Verdict.PASS
    assert gate.value is not None
    assert gate.limit is not None
    assert abs(gate.value - 1) <= gate.limit - 1, "neither more nor less"


def test_what_fails_there_is_said_here(arm: Arm64Executor, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not arm.emulated:
        pytest.skip("on Arm the worker is the local one, which has tests of its own")
    job = Job(bundle=str(bundle), variant="fp32", threads=1, rows=(Rows(adapter="nobody", texts=("a",)),))
    with pytest.raises(DeviceError, match=r"(?s)arm64 \(qemu, cortex-a76\): .*no adapter 'nobody'"):
        arm.run(job)
    monkeypatch.setattr("edgepeft.devices.executors.arm64._TIMEOUT_S", 0.5)
    with pytest.raises(DeviceError, match=r"no result after 0\.5 s"):
        arm.run(job)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in listed.splitlines() if "qemu-aarch64" in line and str(os.getpid()) in line]
    assert not ours, "nothing is left running"


def test_doctor_names_what_is_missing(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sysroots.is_arm_linux():
        pytest.skip("nothing is missing on Arm")
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = cli("targets", "doctor", TARGET, "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert [each["what"] for each in said["missing"]] == ["qemu and the aarch64 sysroot"]
    assert all("edgepeft targets setup linux-arm64-cpu" in each["remedy"] for each in said["missing"])
    setup = cli("targets", "setup", TARGET)
    assert (setup.exit_code, "apt-get was not found" in setup.stderr) == (2, True)
    assert list(tmp_path.glob("sysroots/*")) == []
    assert "nothing to set up for linux-x64-cpu" in cli("targets", "setup", "linux-x64-cpu").stderr
    asked = cli("validate", tmp_path, "--target", TARGET, "--on", "arm64")
    assert asked.exit_code == 2


def test_a_package_that_nothing_can_be_linked_beside(tmp_path: Path) -> None:
    """A cache that several people read, and one wrote."""
    (tmp_path / "packages").touch()
    alone = executors._alone(tmp_path, tmp_path)
    assert [each.name for each in alone.iterdir() if each.is_symlink()] == ["edgepeft"]


def test_without_a_compiler_nothing_is_counted_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("edgepeft.devices.executors.arm64.is_arm_linux", lambda: False)
    executor = Arm64Executor(load_target(TARGET))
    assert (executor.counts, "sudo apt-get install gcc" in executor.uncounted) == (False, True)
    with pytest.raises(DeviceError, match="gcc was not found"):
        emulators.build_counter()


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's hash check, and ours after it."""
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(sysroots, "WHEELS", {"typing-inspection==0.4.5": "0" * 64})
    monkeypatch.setattr(sysroots, "unpack", lambda packages, target, suite: target.mkdir() or {})
    monkeypatch.setattr(sysroots, "unpack_emulator", lambda folder: {})
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get")
    with pytest.raises(DeviceError, match="pip download of the aarch64 wheels failed"):
        sysroots.build_sysroot()
    assert not sysroots.is_ready()
    assert list((tmp_path / "sysroots").iterdir()) == []
