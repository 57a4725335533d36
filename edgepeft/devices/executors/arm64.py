"""``arm64``: 64-bit Arm Linux, natively on such a host, and with the real aarch64 wheel under qemu's emulation elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import tempfile
from pathlib import Path

from ...bench import Job, WorkerResult, run_worker
from ...errors import DeviceError, InputError, MeasureError
from ...targets import Target
from ...worker.host import fingerprint
from ...worker.instructions import VARIABLE
from .protocol import Missing
from .qemu import CPU, counter_path, emulator_command
from .sysroot import is_arm_linux, is_ready, sysroot_folder

#: MiniLM takes some 4 s for 32 tokens in fp32.
_TIMEOUT_S = 1800


class Arm64Executor:
    """Runs the worker process of :mod:`edgepeft.worker.__main__` on aarch64."""

    copies = False

    def __init__(self, target: Target) -> None:
        self._target = target
        self.emulated = not is_arm_linux()
        #: Why ``job.counted`` cannot be counted.
        self.uncounted = _uncounted() if self.emulated else "on an Arm host latency is measured"
        self.counts = not self.uncounted
        self.name = f"arm64 (qemu, {CPU})" if self.emulated else "arm64 (native)"
        self.rows = 24 if self.emulated else 200

    def missing(self) -> tuple[Missing, ...]:
        """The sysroot with its emulator, which ``targets setup`` brings."""
        if not self.emulated:
            return ()
        if platform.system() != "Linux":
            return (Missing(f"qemu's user mode needs Linux, this is {platform.system()}", "--on ssh://user@board"),)
        if not is_ready():
            return (Missing("qemu and the aarch64 sysroot", "edgepeft targets setup linux-arm64-cpu"),)
        return ()

    def run(self, job: Job) -> WorkerResult:
        """In a fresh process; :class:`DeviceError` when it fails or takes more than half an hour."""
        if not self.emulated:
            if job.counted:
                raise InputError("instructions are counted by the emulator; on an Arm host latency is measured")
            return run_worker(job)
        if not is_ready():
            raise DeviceError("the aarch64 sysroot is not there: edgepeft targets setup linux-arm64-cpu")
        folder = sysroot_folder()
        root = folder / "root"
        with tempfile.TemporaryDirectory(prefix="edgepeft-arm64-") as scratch:
            environment = {
                **{key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LANG") if key in os.environ},
                "PYTHONHOME": str(root / "usr"),
                "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(_alone(folder, Path(scratch)))]),
                # Compiling what a worker imports is most of its start under emulation; nothing is written to other folders.
                "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
            }
            # More threads than cores only wait for each other, and time is not judged here.
            threads = min(job.threads, os.cpu_count() or 1)
            counter = None
            if job.counted:
                counter = Path(scratch) / "instructions"
                counter.write_bytes(bytes(8))
                # The same work each time; and the counter is exact for one thread.
                environment |= {VARIABLE: str(counter), "PYTHONHASHSEED": "0"}
                threads = 1
            moved = job.model_copy(update={"bundle": str(Path(job.bundle).resolve()), "threads": threads})
            python = [str(root / "usr" / "bin" / "python3.11"), "-P", "-m", "edgepeft.worker"]
            try:
                result = run_worker(
                    moved,
                    command=[*emulator_command(folder / "qemu", root, counter), *python],
                    environment=environment,
                    timeout_s=_TIMEOUT_S,
                )
            except MeasureError as error:
                raise DeviceError(f"{self.name}: {error}") from error
        host = result.host.model_copy(update={"cpu": f"{CPU} emulated by qemu on {_host_cpu()}"})
        return result.model_copy(update={"host": host})


def _alone(folder: Path, scratch: Path) -> Path:
    """A folder that holds this package alone: others beside it are built for this machine.

    It lies below ``folder``, one for each installation and at the same path each time: by that Python knows its bytecode again.
    Where nobody may write there, it is ``scratch``.
    """
    package = Path(__file__).parents[2]
    link = folder / "packages" / hashlib.sha256(bytes(package)).hexdigest()[:12] / package.name
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # of an earlier worker, or one beside this
            link.symlink_to(package)
    except OSError:
        link = scratch / package.name
        link.symlink_to(package)
    return link.parent


def _uncounted() -> str:
    if counter_path().is_file() or shutil.which("gcc") is not None:
        return ""
    return "gcc was not found, which compiles the counter: sudo apt-get install gcc"


def _host_cpu() -> str:
    """What emulates, which the guest cannot see."""
    return fingerprint("", 1).cpu
