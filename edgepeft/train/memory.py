"""How far the memory of this process grows while something runs."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .device import with_device_growth

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def with_memory_growth(work: Callable[[], T]) -> tuple[T, int | None]:
    """What ``work`` gives, and by how many bytes the resident memory was higher at its peak than before it; on a GPU, its memory.

    ``None`` where the system does not tell (Linux does). Memory that earlier work freed is given back first, as far as the
    allocator does; a few MB of noise stay.
    """
    gc.collect()
    if (measured := with_device_growth(work)) is not None:
        return measured
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # the peak starts anew (proc(5))
        before = _read("VmRSS")
    except (OSError, AttributeError, ValueError):  # not Linux, or not glibc
        return work(), None
    result = work()
    return result, max(0, _read("VmHWM") - before)


def _read(name: str) -> int:
    """A line of ``/proc/self/status`` in kB, as bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)
