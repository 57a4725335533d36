"""``arm64``: 64-bit Arm Linux, natively on such a host, and with the real aarch64 wheel under qemu's emulation elsewhere."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

from ..bench import Job, WorkerResult, run_worker
from ..errors import DeviceError, MeasureError
from ..targets import Target
from .protocol import Missing
from .sysroot import find_qemu, is_arm_linux, is_ready, sysroot_folder

#: The core of a Raspberry Pi 5: it has dot products and fp16, and neither i8mm nor SVE.
CPU = "cortex-a76"
#: MiniLM takes some 4 s for 32 tokens in fp32.
_TIMEOUT_S = 1800


class Arm64Executor:
    """Runs the worker process of :mod:`edgepeft.bench.worker` on aarch64."""

    copies = False

    def __init__(self, target: Target) -> None:
        self._target = target
        self.emulated = not is_arm_linux()
        self.name = f"arm64 (qemu, {CPU})" if self.emulated else "arm64 (native)"
        self.rows = 24 if self.emulated else 200

    def missing(self) -> tuple[Missing, ...]:
        """The sysroot and qemu, both of which ``targets setup`` brings."""
        if not self.emulated:
            return ()
        setup = "edgepeft targets setup linux-arm64-cpu"
        found = []
        if platform.system() != "Linux":
            return (Missing(f"qemu's user mode needs Linux, this is {platform.system()}", "--on ssh://user@board"),)
        if find_qemu() is None:
            found.append(Missing("qemu-aarch64-static", f"{setup}   (or: sudo apt-get install qemu-user-static)"))
        if not is_ready():
            found.append(Missing("the aarch64 sysroot", setup))
        return tuple(found)

    def run(self, job: Job) -> WorkerResult:
        """In a fresh process; :class:`DeviceError` when it fails or takes more than half an hour."""
        if not self.emulated:
            return run_worker(job)
        qemu, folder = find_qemu(), sysroot_folder()
        if qemu is None or not is_ready():
            raise DeviceError("the aarch64 sysroot is not there: edgepeft targets setup linux-arm64-cpu")
        root = folder / "root"
        with tempfile.TemporaryDirectory(prefix="edgepeft-arm64-") as scratch:
            # Only this package: other packages beside it are built for this machine.
            (Path(scratch) / "edgepeft").symlink_to(Path(__file__).parents[1])
            environment = {
                **{key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LANG") if key in os.environ},
                "PYTHONHOME": str(root / "usr"),
                "PYTHONPATH": os.pathsep.join([str(folder / "site"), scratch]),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            command = [str(qemu), "-cpu", CPU, "-L", str(root), str(root / "usr" / "bin" / "python3.11"), "-P"]
            # More threads than cores only wait for each other, and time is not judged here.
            threads = min(job.threads, os.cpu_count() or 1)
            moved = job.model_copy(update={"bundle": str(Path(job.bundle).resolve()), "threads": threads})
            try:
                result = run_worker(
                    moved,
                    command=[*command, "-m", "edgepeft.bench.worker"],
                    environment=environment,
                    timeout_s=_TIMEOUT_S,
                )
            except MeasureError as error:
                raise DeviceError(f"{self.name}: {error}") from error
        host = result.host.model_copy(
            update={"cpu": f"{CPU} emulated by {shutil.which(qemu) or qemu} on {result.host.cpu}"}
        )
        return result.model_copy(update={"host": host})
