"""What this machine has left: memory that a process may still take, and room on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..units import MB

#: Where the kernel says the limit of the group of processes that this one is in, and what of it is taken for good.
_CGROUP = Path("/sys/fs/cgroup")


def free_disk_mb(target: Path) -> float:
    """What the disk has where ``target`` is or will be."""
    there = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free / MB


def free_memory_mb() -> float | None:
    """Memory that can be taken without swapping, within a container's limit too; ``None`` where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        said = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        free = said["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):  # macOS, Windows
        return None
    limit = _limit()
    return (free if limit is None else min(free, limit)) / MB


def _limit() -> int | None:
    """What a container's limit leaves: its bytes less those that no file backs."""
    try:
        whole = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        taken = next(int(line.split()[1]) for line in lines if line.startswith("anon "))
        return None if whole == "max" else int(whole) - taken
    except (OSError, ValueError, StopIteration):  # no such limit here
        return None
