"""``adb``: an Android device on a cable, through the C++ runner. Untested on a device: none was at hand.

Android has no Python, so the runner of ``targets/cpp`` goes there, built with the NDK against the onnxruntime-android package,
with its ``libonnxruntime.so`` beside it: ``EDGEPEFT_ADB_RUNNER`` names that folder.
Tests drive this executor with a stand-in for ``adb``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from ...bench import Host, Job, WorkerResult
from ...bundle import hash_file, read_bundle
from ...errors import DeviceError, InputError
from ...targets import Target
from .copying import bundle_files, ship
from .cpp_protocol import read_answer, write_job
from .protocol import Missing

_FOLDER = "/data/local/tmp/edgepeft"
_JOB_S = 900
_COPY_S = 900
_RUNNER = ("edgepeft_run", "libonnxruntime.so")


class Adb:
    """A shell through ``adb``, which must know the device; see :class:`edgepeft.devices.executors.copying.Shell`."""

    resumes = False

    def __init__(self, address: str) -> None:
        serial = address.partition("://")[2]
        self.where = f"adb {serial}".strip()
        self.command = ["adb", *(["-s", serial] if serial else [])]

    def call(self, script: str, *, timeout_s: float = 60) -> str:
        """Run a script. The exit code is asked for in the output: old versions of adb do not pass it on."""
        marker = uuid.uuid4().hex
        output = self.adb(["shell", f"set -e\n(\n{script}\n) 2>&1; echo {marker} $?"], timeout_s)
        said, mark, code = output.rpartition(marker)
        if not mark or code.strip() != "0":
            tail = "\n".join((said or output).strip().splitlines()[-6:])
            raise DeviceError(f"{self.where}: {tail or 'the shell ended without a word'}")
        return said

    def put(self, source: Path, offset: int, target: str, then: str) -> str:
        """Push a whole file; adb cannot begin in the middle of one."""
        self.adb(["push", str(source), target], _COPY_S)
        return self.call(then, timeout_s=300)

    def adb(self, arguments: list[str], timeout_s: float) -> str:
        """One adb command; :class:`DeviceError` where it fails or does not answer."""
        try:
            done = subprocess.run(
                [*self.command, *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=timeout_s,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{self.where}: no answer to `adb {arguments[0]}` within {timeout_s:g} s") from error
        except OSError as error:
            raise DeviceError("adb was not found: sudo apt-get install adb") from error
        if done.returncode:
            raise DeviceError(f"{self.where}: {(done.stderr or done.stdout).strip() or f'exit code {done.returncode}'}")
        return done.stdout


class AdbExecutor:
    """Runs jobs on an Android device with the C++ runner."""

    emulated = False
    copies = True
    rows = 200

    def __init__(self, target: Target, address: str) -> None:
        self._target = target
        self._adb = Adb(address)
        self.name = self._adb.where
        self._runner = Path(os.environ.get("EDGEPEFT_ADB_RUNNER", ""))

    def missing(self) -> tuple[Missing, ...]:
        """adb, a device that is connected and authorized and of the target's kind, and the runner built for it."""
        if shutil.which("adb") is None:
            return (Missing("adb", "sudo apt-get install adb"),)
        missing = []
        if lacking := [name for name in _RUNNER if not (self._runner / name).is_file()]:
            missing.append(
                Missing(
                    f"{' and '.join(lacking)} for the device",
                    "build targets/cpp with the NDK (docs/bindings.md) and name the folder in EDGEPEFT_ADB_RUNNER",
                )
            )
        try:
            machine = self._adb.call("uname -m", timeout_s=20).strip()
        except DeviceError as error:
            return (
                *missing,
                Missing(str(error), "connect a device with USB debugging and accept this machine: adb devices"),
            )
        if machine != "aarch64":
            missing.append(Missing(f"the device is {machine}, {self._target.name} is arm64", "connect another"))
        return tuple(missing)

    def run(self, job: Job) -> WorkerResult:
        """Push what is not there, run the program, read its answer. Nothing is left running."""
        if job.cases:
            raise InputError("the C++ runner measures no latency: leave cases out")
        bundle = read_bundle(job.bundle)
        files = bundle_files(bundle, job.variant)
        folder = f"{_FOLDER}/bundle-{files['edgepeft.json'][1].sha256[:16]}"
        runner = {name: (self._runner / name, hash_file(self._runner / name)) for name in _RUNNER}
        ship(self._adb, runner, _FOLDER)
        ship(self._adb, files, folder)
        text = write_job(job, bundle, {name: f"{folder}/{name}" for name in bundle.manifest.files})
        ticket = f"{_FOLDER}/run-{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory(prefix="edgepeft-adb-") as scratch:
            words = Path(scratch) / "job"
            words.write_text(text, encoding="utf-8")
            self._adb.put(words, 0, f"{ticket}.job", "true")
        quoted = shlex.quote(ticket)
        script = (
            f"cd {_FOLDER}; chmod 755 edgepeft_run\n"
            f"sh -c 'echo $$ > {quoted}.pid; LD_LIBRARY_PATH={_FOLDER} exec timeout {_JOB_S} ./edgepeft_run' < {quoted}.job"
        )
        try:
            answer = self._adb.call(script, timeout_s=_JOB_S + 30)
        finally:
            self._end(quoted)
        return read_answer(answer[answer.index("onnxruntime") :], job, bundle, self._host(job), self.name)

    def _end(self, ticket: str) -> None:
        """End the program where it still runs, and remove what the run left."""
        try:
            self._adb.call(
                f"if [ -f {ticket}.pid ]; then kill $(cat {ticket}.pid) 2>/dev/null || true; fi; rm -f {ticket}.pid {ticket}.job",
                timeout_s=20,
            )
        except DeviceError:
            return  # the device is gone; `timeout` ends the program there

    def _host(self, job: Job) -> Host:
        said = self._adb.call(
            "getprop ro.product.model || true; getprop ro.build.version.release || true; nproc; uname -m"
        )
        model, release, cores, machine = (*(line.strip() for line in said.splitlines()), "", "", "", "")[:4]
        return Host(
            cpu=model or "unknown",
            cores=int(cores) if re.fullmatch(r"\d+", cores) else 1,
            os=f"Android {release}",
            machine=machine,
            python="",
            onnxruntime="",
            threads=job.threads,
        )
