"""``python -m edgepeft.worker.gpu_probe``: which GPU the WebGPU plugin computes on, as one line of JSON.

A process of its own, since a GPU's driver that is loaded stays loaded, and one that breaks ends its process.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from ..errors import DeviceError, EdgepeftError
from ..json_text import json_text
from ..terminate import run_child
from .process import worker_environment
from .vulkan import vulkan_gpus

_TIMEOUT_S = 120


@dataclass(frozen=True)
class LocalGpu:
    """This machine's GPU: its name, whether a program on the CPU stands in for one, and whether it computes in float16."""

    name: str
    software: bool
    halves: bool


@functools.cache
def find_local_gpu() -> LocalGpu:
    """The GPU that ``device="webgpu"`` computes on, asked once a process; it takes a second.

    Raises:
        DeviceError: There is none, or the plugin or what it needs is missing; it says what to do.
    """
    command = [sys.executable, "-P", "-m", "edgepeft.worker.gpu_probe"]
    try:
        done = run_child(command, env=worker_environment(), timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"the GPU's driver gave no answer in {_TIMEOUT_S} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = done.stderr.strip().splitlines()
        raise DeviceError(
            said[-1].partition(": ")[2] if done.returncode == 2 and said else _broken(done.returncode, said)
        )
    return LocalGpu(**json.loads(lines[-1]))


def _broken(code: int, said: list[str]) -> str:
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"asking for the GPU ended with {ended}: {said[-1][:300] if said else '(nothing on standard error)'}"


def _found() -> LocalGpu:
    from ..runtime.gpu import check_computes, computes_halves, webgpu_device

    device = webgpu_device()
    gpus = vulkan_gpus() if sys.platform == "linux" else None
    if sys.platform == "linux" and not gpus:
        lacks = (
            "no driver for Vulkan"
            if gpus is not None
            else "no loader for Vulkan (libvulkan.so.1: apt install libvulkan1)"
        )
        raise DeviceError(
            f"this machine has {lacks}; install the GPU's (mesa-vulkan-drivers for AMD, Intel and the CPU itself; the "
            "vendor's for NVIDIA)"
        )
    if gpus:
        name, software = gpus[0].name, gpus[0].kind == "cpu"
    else:
        hardware = device.device
        name, software = hardware.metadata.get("Description") or hardware.vendor or "a GPU that is not named", False
    check_computes()
    return LocalGpu(name, software, computes_halves())


def main() -> int:
    """Print it; 0, or 2 with one line on standard error."""
    try:
        found = _found()
    except EdgepeftError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    sys.stdout.write(json_text(asdict(found), indent=None) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
