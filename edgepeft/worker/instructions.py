"""Counting the instructions of an inference, where the process runs under an emulator that counts.

``EDGEPEFT_INSTRUCTIONS`` names a file whose first eight bytes are what the emulator has executed so far
(``targets/arm64/count_instructions.c``): this process maps it and reads it before and after.
"""

from __future__ import annotations

import gc
import mmap
import os
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from ..errors import MeasureError

VARIABLE = "EDGEPEFT_INSTRUCTIONS"
#: Inferences of a case before the counted ones: the first ones allocate and pack weights.
_WARMUP = 2
#: Inferences are counted until the two least agree within this share, and at most so many.
_AGREE, _MOST = 2e-4, 5


class Counter:
    """The emulator's count. Raises :class:`MeasureError` where this process is not counted."""

    def __init__(self) -> None:
        path = os.environ.get(VARIABLE)
        if path is None:
            raise MeasureError(
                f"nothing counts instructions here: {VARIABLE} is not set, only the arm64 executor sets it"
            )
        with Path(path).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        readings = [self.read() for _ in range(5)]
        if readings[0] == readings[-1]:
            raise MeasureError(f"the count in {path} stands still: the emulator was started without its plugin")
        #: What reading costs itself.
        self._own = min(after - before for before, after in pairwise(readings))

    def read(self) -> int:
        """Instructions executed so far."""
        return int(struct.unpack_from("<Q", self._map)[0])

    def count(self, call: Callable[[], object]) -> tuple[int, ...]:
        """Instructions of each of several calls, after some that are not counted.

        They differ by some thousandths: memory comes back from the allocator at other alignments. The least is what the call
        itself needs.
        """
        for _ in range(_WARMUP):
            call()
        collecting = gc.isenabled()
        gc.disable()
        try:
            counts = [self._once(call)]
            while len(counts) < _MOST:
                counts.append(self._once(call))
                least, next_ = sorted(counts)[:2]
                if next_ <= least * (1 + _AGREE):
                    break
            return tuple(counts)
        finally:
            if collecting:
                gc.enable()

    def _once(self, call: Callable[[], object]) -> int:
        before = self.read()
        call()
        return self.read() - before - self._own
