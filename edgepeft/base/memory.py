"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back(*, collect: bool = True) -> None:
    """Let the C library return what was freed: glibc keeps it for later, in one pool a thread.

    Elsewhere than on Linux with glibc only Python's own garbage is collected. ``collect=False`` leaves that out, which takes a
    tenth of a second, where nothing that was let go is part of a cycle.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
