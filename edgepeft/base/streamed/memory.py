"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Let the C library return what was freed: glibc keeps it for later, in one pool a thread.

    Elsewhere than on Linux with glibc only Python's own garbage is collected.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
