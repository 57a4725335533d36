"""This host and this process, as far as the platform tells."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from ..units import MB
from .job import Host


def fingerprint(onnxruntime_version: str, threads: int) -> Host:
    """The host this process runs on; ``cores`` counts those the process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Host(
        cpu=_cpu_model(),
        cores=cores,
        os=platform.system(),
        machine=platform.machine(),
        python=platform.python_version(),
        onnxruntime=onnxruntime_version,
        threads=threads,
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"} and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _proc_status_mb(field: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MB
    return None


def rss_mb() -> float | None:
    """Resident set size now, in MB; ``None`` where there is no /proc."""
    return _proc_status_mb("VmRSS")


def held_mb() -> tuple[float, float] | None:
    """Of the resident set, what is this process's own (anonymous) and what is mapped from files, in MB.

    The second is shared between processes, and the system may drop it. ``None`` where there is no ``/proc/self/smaps_rollup``.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        said = {line.split(":")[0]: int(line.split()[1]) * 1024 / MB for line in lines}
        return said["Anonymous"], said["Rss"] - said["Anonymous"]
    except (OSError, KeyError, ValueError, IndexError):
        return None


def peak_rss_mb() -> float | None:
    """Highest resident set size of this process, in MB; ``None`` on Windows.

    On Linux from /proc: ``ru_maxrss`` survives exec and would report a larger parent's peak as this process's own.
    """
    if (peak := _proc_status_mb("VmHWM")) is not None:
        return peak
    if sys.platform == "win32":
        return None
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / MB if sys.platform == "darwin" else used * 1024 / MB
