"""What a process holds: memory of its own, and what is mapped from files."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from edgepeft.worker.host import held_mb, peak_rss_mb

pytestmark = pytest.mark.skipif(held_mb() is None, reason="no /proc/self/smaps_rollup")


def test_own_and_mapped_memory_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(60_000_000))
    before = held_mb()
    own = np.ones(7_500_000)  # 60 MB
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        after = held_mb()
    assert before is not None
    assert after is not None
    assert after[0] - before[0] > 0.8 * own.nbytes / 1e6
    assert after[1] - before[1] > 40
    assert sum(after) <= 1.05 * (peak_rss_mb() or 0)
