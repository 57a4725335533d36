"""Working through the rows of a large matrix piece by piece, on every core."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

#: Numbers of a piece: 1 MB in float32, so that its intermediate results stay in a core's cache.
PIECE = 1 << 18
#: Most threads that round: memory is the limit beyond.
_THREADS = 4


def in_pieces(rows: int, columns: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` for pieces of rows that make up all of them; numpy lets several run at once.

    Args:
        rows: How many there are.
        columns: Numbers in a row.
        work: Is called from several threads, for rows that no other call gets.
    """
    step = max(1, PIECE // max(1, columns))
    starts = range(0, rows, step)
    threads = min(_THREADS, os.cpu_count() or 1, len(starts))
    if threads < 2:
        for start in starts:
            work(start, min(start + step, rows))
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda start: work(start, min(start + step, rows)), starts):
            pass
