"""Real aarch64 kernels under qemu: the subset that CI runs (about a minute), and the pinned MiniLM in the slow rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgepeft.bench import Job, Rows
from edgepeft.devices import executor_for, validate_on
from edgepeft.devices import sysroot as sysroots
from edgepeft.devices.arm64 import Arm64Executor
from edgepeft.errors import DeviceError
from edgepeft.targets import Verdict, load_target

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


def test_what_fails_there_is_said_here(arm: Arm64Executor, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not arm.emulated:
        pytest.skip("on Arm the worker is the local one, which has tests of its own")
    job = Job(bundle=str(bundle), variant="fp32", threads=1, rows=(Rows(adapter="nobody", texts=("a",)),))
    with pytest.raises(DeviceError, match=r"(?s)arm64 \(qemu, cortex-a76\): .*no adapter 'nobody'"):
        arm.run(job)
    monkeypatch.setattr("edgepeft.devices.arm64._TIMEOUT_S", 0.5)
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
