"""``ssh://user@host``: a machine that OpenSSH reaches. The runtime and the bundle are copied there, the report comes back."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from ...bench import Job, WorkerResult, run_worker
from ...bundle import hash_file, read_bundle
from ...errors import DeviceError, MeasureError
from ...targets import Target
from .copying import bundle_files, package_zip, ship
from .protocol import Missing

_JOB_S = 900
_COPY_S = 1800
#: What the worker imports there beside the copied edgepeft.
_NEEDS = ("numpy", "onnxruntime", "tokenizers", "pydantic", "jinja2")


class Ssh:
    """A shell through the OpenSSH client, whose own configuration applies (keys, jump hosts, ports).

    Never asks anything: an unknown or changed host key is refused, and so is a password.
    """

    resumes = True

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if not parts.hostname:
            raise DeviceError(
                f"{address} names no host: write ssh://user@host, ssh://user@host:port or ssh://host/folder"
            )
        self.where = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
        self.folder = parts.path.rstrip("/") or ".cache/edgepeft-device"
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": "10",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
        }
        self.command = ["ssh", "-T", *(part for key, value in options.items() for part in ("-o", f"{key}={value}"))]
        if (configuration := os.environ.get("EDGEPEFT_SSH_CONFIG")) is not None:
            self.command += ["-F", configuration]
        if parts.port:
            self.command += ["-p", str(parts.port)]
        self.command += ["--", self.where]

    def call(self, script: str, *, timeout_s: float = 60) -> str:
        """Run a script; see :class:`edgepeft.devices.executors.copying.Shell`."""
        return self._run(["sh -s"], timeout_s, text=f"set -e\n{script}\n")

    def put(self, source: Path, offset: int, target: str, then: str) -> str:
        """Send a file from ``offset`` on; see :class:`edgepeft.devices.executors.copying.Shell`."""
        into = ">>" if offset else ">"
        with source.open("rb") as file:
            file.seek(offset)
            return self._run([f"set -e\ncat {into} {shlex.quote(target)}\n{then}"], _COPY_S, file=file)

    def _run(self, command: list[str], timeout_s: float, *, text: str | None = None, file: object = None) -> str:
        try:
            done = subprocess.run(
                [*self.command, *command],
                stdin=file if text is None else None,  # type: ignore[call-overload] # an open file
                input=None if text is None else text.encode(),
                capture_output=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{self.where} did not answer within {timeout_s:g} s") from error
        except OSError as error:
            raise DeviceError(f"cannot start ssh: {error.strerror or error}; install OpenSSH's client") from error
        if done.returncode:
            raise DeviceError(
                f"{self.where}: {_explain(done.stderr.decode(errors='replace'), self.where, done.returncode)}"
            )
        return done.stdout.decode(errors="replace")


def _explain(said: str, where: str, code: int) -> str:
    tail = "\n".join(said.strip().splitlines()[-6:]) or f"exit code {code}"
    host = where.rpartition("@")[2]
    if "Host key verification failed" in said:
        return (
            f"its host key is unknown or was changed, so nothing was sent. Compare the key with the machine's and accept it "
            f"with: ssh {where} ({tail.splitlines()[-1]})"
        )
    if "Permission denied (" in said:
        return f"no key of yours is accepted: ssh-copy-id {where} ({tail.splitlines()[-1]})"
    if re.search("timed out|refused|Could not resolve|No route|unreachable", said):
        return f"unreachable: {tail.splitlines()[-1]}. Is {host} on, in this network, and running sshd?"
    return tail


class SshExecutor:
    """Runs the worker process on a machine behind ssh."""

    emulated = False
    copies = True
    rows = 200

    def __init__(self, target: Target, address: str) -> None:
        self._target = target
        self._ssh = Ssh(address)
        self.name = f"ssh {self._ssh.where}"
        self.python = os.environ.get("EDGEPEFT_SSH_PYTHON", "python3")
        self._shipped: dict[tuple[str, str], str] = {}

    def missing(self) -> tuple[Missing, ...]:
        """A client, a machine that answers and is of the target's kind, and a Python with the runtime's packages."""
        if shutil.which("ssh") is None:
            return (Missing("OpenSSH's client", "sudo apt-get install openssh-client"),)
        python, where = shlex.quote(self.python), self._ssh.where
        imports = "; ".join(f"import {name}" for name in _NEEDS)
        check = f"import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed, found ' + sys.version; {imports}"
        try:
            said = self._ssh.call(
                f"uname -sm\n{python} -c {shlex.quote(check)} 2>&1 || true", timeout_s=45
            ).splitlines()
        except DeviceError as error:
            return (Missing(str(error), f"ssh {where} true"),)
        system, _, machine = said[0].partition(" ")
        device = f"{'macos' if system == 'Darwin' else system.lower()} {_ARCHITECTURES.get(machine, machine)}"
        wanted = f"{self._target.machine.os} {self._target.machine.arch}"
        lacking = []
        if device != wanted:
            lacking.append(
                Missing(f"{where} is {device}, {self._target.name} is {wanted}", "choose that machine's --target")
            )
        if len(said) > 1:
            remedy = (
                f"ssh {where} {self.python} -m pip install 'onnxruntime>=1.20' 'numpy>=2' tokenizers pydantic jinja2"
            )
            lacking.append(
                Missing(f"{self.python} on {where}: {said[-1]}", f"{remedy}   (another Python: EDGEPEFT_SSH_PYTHON)")
            )
        return tuple(lacking)

    def run(self, job: Job) -> WorkerResult:
        """Copy what is not there yet, run the job, bring its answer back; nothing is left running there."""
        folder = self._ship(job)
        ssh, ticket = self._ssh, f"{self._ssh.folder}/run-{uuid.uuid4().hex}.pid"
        library = f"{ssh.folder}/{self._library()}"
        # `timeout` ends the worker also where this machine or the network goes away; its process is what `ticket` names.
        remote = (
            f"echo $$ > {shlex.quote(ticket)}; "
            f"PYTHONPATH={shlex.quote(library)} exec timeout -k 5 {_JOB_S} {shlex.quote(self.python)} -P -m edgepeft.worker"
        )
        try:
            return run_worker(
                job.model_copy(update={"bundle": folder}),
                command=[*ssh.command, remote],
                environment=dict(os.environ),
                timeout_s=_JOB_S + 30,
            )
        except MeasureError as error:
            raise DeviceError(f"{self.name}: {_explain(str(error), ssh.where, 255)}") from error
        finally:
            self._end(ticket)

    def _end(self, ticket: str) -> None:
        """End the worker where it still runs: after a time-out, Ctrl-C or a lost connection."""
        quoted = shlex.quote(ticket)
        try:
            self._ssh.call(
                f"if [ -f {quoted} ]; then kill $(cat {quoted}) 2>/dev/null || true; rm -f {quoted}; fi", timeout_s=20
            )
        except DeviceError:
            return  # the machine is gone; `timeout` ends the worker there

    def _library(self) -> str:
        """The name of the copied edgepeft there, which says what is in it."""
        return f"edgepeft-{hashlib.sha256(package_zip()).hexdigest()[:16]}.zip"

    def _ship(self, job: Job) -> str:
        """The bundle's folder there, by the manifest's hash: another bundle never overwrites one that runs."""
        key = (job.bundle, job.variant)
        if key in self._shipped:
            return self._shipped[key]
        bundle = read_bundle(job.bundle)
        files = bundle_files(bundle, job.variant)
        folder = f"{self._ssh.folder}/bundle-{files['edgepeft.json'][1].sha256[:16]}"
        with tempfile.TemporaryDirectory(prefix="edgepeft-ssh-") as scratch:
            library = Path(scratch) / self._library()
            library.write_bytes(package_zip())
            ship(self._ssh, {library.name: (library, hash_file(library))}, self._ssh.folder)
        ship(self._ssh, files, folder)
        self._shipped[key] = folder
        return folder


_ARCHITECTURES = {"aarch64": "arm64", "amd64": "x86_64"}
