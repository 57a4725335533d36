"""What a process holds: memory of its own, and what is mapped from files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgepeft.worker.host import held_mb

pytestmark = pytest.mark.skipif(held_mb() is None, reason="no /proc/self/smaps_rollup")

# In a process of its own: where hundreds of tests ran before, an allocator has freed pages left to give out again.
HOLD = """
import mmap, sys
from edgepeft.worker.host import held_mb, peak_rss_mb
size, page = 60_000_000, 4096
before = held_mb()
own = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for start in range(0, size, page):
    own[start] = 1
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert sum(mapped[::page]) == 0
    after = held_mb()
print(after[0] - before[0], after[1] - before[1], sum(after), peak_rss_mb())
"""


def test_own_and_mapped_memory_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(60_000_000))
    said = subprocess.run([sys.executable, "-c", HOLD, str(file)], capture_output=True, text=True, check=True).stdout
    own, mapped, both, peak = map(float, said.split())
    assert 59 < own < 70
    assert 50 < mapped < 70
    assert both <= 1.05 * peak
