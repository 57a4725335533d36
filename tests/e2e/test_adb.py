"""The adb executor with a stand-in for adb that works on a local folder: everything but the device."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepeft import runtime
from edgepeft.bench import Job, Prompts, Rows
from edgepeft.devices import executor_for
from edgepeft.devices.executors import adb as adbs
from edgepeft.devices.executors import cpp as native
from edgepeft.devices.executors.adb import AdbExecutor
from edgepeft.errors import DeviceError, InputError
from edgepeft.targets import load_target

pytestmark = pytest.mark.e2e

STAND_IN = """#!{python}
import os, shutil, subprocess, sys
arguments = sys.argv[1:]
if arguments[:1] == ["-s"]:
    if arguments[1] != "emulator-5554":
        sys.exit(f"error: device '{{arguments[1]}}' not found")
    arguments = arguments[2:]
if os.environ.get("STAND_IN") == "hangs":
    os.execvp("sleep", ["sleep", "60"])
if arguments[0] == "push":
    os.makedirs(os.path.dirname(arguments[2]), exist_ok=True)
    shutil.copyfile(arguments[1], arguments[2])
elif arguments[0] == "shell":
    said = "uname() {{ echo aarch64; }}; getprop() {{ echo Stand-in; }};" + arguments[1]
    sys.exit(subprocess.run(["sh", "-c", said]).returncode)
"""


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdbExecutor:
    if native.find_library() is None or shutil.which("g++") is None:
        pytest.skip("no C++ here: the runner is compiled for this machine in the tests")
    program = native.build_runner()
    tools, runner = tmp_path / "tools", tmp_path / "runner"
    tools.mkdir()
    runner.mkdir()
    (tools / "adb").write_text(STAND_IN.format(python=sys.executable))
    (tools / "adb").chmod(0o755)
    shutil.copyfile(program, runner / "edgepeft_run")
    library = native.find_library()
    assert library is not None
    shutil.copyfile(library, runner / "libonnxruntime.so")
    (tmp_path / "there").mkdir()
    # The program asks for the name that the library calls itself by; on Android that is the file's.
    (tmp_path / "there" / "libonnxruntime.so.1").symlink_to(tmp_path / "there" / "libonnxruntime.so")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EDGEPEFT_ADB_RUNNER", str(runner))
    monkeypatch.setattr(adbs, "_FOLDER", str(tmp_path / "there"))
    executor = executor_for(load_target("android-arm64-cpu"), "adb://emulator-5554")
    assert isinstance(executor, AdbExecutor)
    return executor


def test_pushes_runs_and_reads(device: AdbExecutor, bundle: Path, tmp_path: Path) -> None:
    assert device.missing() == ()
    text = "a very good film"
    job = Job(
        bundle=str(bundle), variant="fp32", threads=1, restore=True, swaps=5,
        rows=tuple(Rows(adapter=name, texts=(text,)) for name in ("reviews", "movies")),
    )  # fmt: skip
    result = device.run(job)
    model = runtime.open(bundle)
    for rows, name in zip(result.rows, ("reviews", "movies"), strict=True):
        assert np.array_equal(np.float32(rows.logits), model.use(name).logits([text]))
    assert result.base_restored is True
    assert (result.host.cpu, result.host.machine) == ("Stand-in", "aarch64")
    assert not list((tmp_path / "there").glob("run-*")), "nothing of the run is left there"
    pushed = (tmp_path / "there" / "edgepeft_run").stat().st_mtime_ns
    device.run(job)
    assert (tmp_path / "there" / "edgepeft_run").stat().st_mtime_ns == pushed, "what is there is not pushed again"


def test_generates_there(device: AdbExecutor, generating: Path) -> None:
    prompts = tuple(
        Prompts(adapter=name, texts=("the film was",), max_new_tokens=8) for name in ("wide", "prefix", None)
    )
    job = Job(bundle=str(generating), variant="fp32", threads=1, restore=True, prompts=prompts)
    result = device.run(job)
    model = runtime.open(generating, threads=1)
    for found, name in zip(result.generated, ("wide", "prefix", None), strict=True):
        wanted = model.use(name).generate("the film was", max_new_tokens=8, temperature=0)
        assert (found.tokens, found.texts) == ((wanted.tokens,), (wanted.text,))
    assert result.base_restored is True


def test_what_is_missing_or_breaks_is_said(
    device: AdbExecutor, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target("android-arm64-cpu")
    (missing,) = AdbExecutor(target, "adb://other").missing()
    assert "device 'other' not found" in missing.what
    job = Job(bundle=str(bundle), variant="fp32", threads=1, rows=(Rows(adapter=None, texts=("a",)),))
    with pytest.raises(InputError, match="measures no latency"):
        device.run(Job.model_validate({**job.model_dump(), "cases": [{"adapter": None, "batch": 1, "sequence": 8}]}))
    with monkeypatch.context() as patch:
        patch.setenv("EDGEPEFT_ADB_RUNNER", str(tmp_path / "nowhere"))
        (missing,) = AdbExecutor(target, "adb").missing()
        assert missing.what == "edgepeft_run and libonnxruntime.so for the device"
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        (missing,) = AdbExecutor(target, "adb").missing()
        assert missing.remedy == "sudo apt-get install adb"
    (tmp_path / "runner" / "edgepeft_run").write_text("#!/bin/sh\necho cannot load the library >&2; exit 3\n")
    with pytest.raises(DeviceError, match="cannot load the library"):
        device.run(job)
    assert not list((tmp_path / "there").glob("run-*"))
    monkeypatch.setenv("STAND_IN", "hangs")
    with pytest.raises(DeviceError, match=r"no answer to `adb shell` within 0\.3 s"):
        device._adb.call("true", timeout_s=0.3)
