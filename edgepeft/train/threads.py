"""How many threads a training step should take: measured on the steps themselves, since other processes share the cores."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

#: Steps that each number of threads is timed on; a step counts like any other, so measuring costs nothing.
_TRIALS = 3
#: Steps after which it is looked again: other programs come and go.
_AGAIN = 60
#: More threads must be this much faster, or fewer are kept: they leave cores to others and their times scatter less.
_WORTH = 0.92


class ThreadChooser:
    """Times training steps with different numbers of threads, and goes on with the fastest.

    PyTorch's threads wait for each other by spinning. Where another process holds one of the cores, a step on two threads then
    takes two to three times as long as on one (MiniLM, 16 x 25 tokens: 144 ms on one thread, 415 ms on two of two shared cores).

    Args:
        fixed: A number of threads that was asked for: nothing is timed.
        cores: The most threads; by default the cores that this process may use.
    """

    def __init__(self, fixed: int | None = None, cores: int | None = None) -> None:
        if cores is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        limit = os.environ.get("OMP_NUM_THREADS", "")
        if limit.isdecimal() and int(limit) > 0:
            cores = min(cores, int(limit))
        counts = [1]
        while counts[-1] * 2 <= cores:
            counts.append(counts[-1] * 2)
        if counts[-1] != cores:
            counts.append(cores)
        self.candidates = (fixed,) if fixed is not None else tuple(counts)
        self.chosen = self.candidates[0]
        self._step = 0
        self._times: dict[int, list[float]] = defaultdict(list)

    def next(self) -> int:
        """The threads of the step to come."""
        if len(self.candidates) == 1:
            return self.chosen
        place = self._step % _AGAIN
        if place < _TRIALS * len(self.candidates):  # interleaved: a disturbance hits all of them
            return self.candidates[place % len(self.candidates)]
        return self.chosen

    def took(self, threads: int, seconds_a_token: float) -> None:
        """Note how long a step took, by token, since steps differ in length."""
        self._step += 1
        if len(self.candidates) == 1:
            return
        self._times[threads].append(seconds_a_token)
        if self._step % _AGAIN == _TRIALS * len(self.candidates):
            self.chosen = fastest({count: median(times) for count, times in self._times.items()})
            self._times.clear()


def fastest(times: dict[int, float]) -> int:
    """The number of threads to take: the fewest that no greater number beats by more than 8 percent."""
    chosen, best = 0, float("inf")
    for count in sorted(times):
        if times[count] < best * (_WORTH if chosen else 1.0):
            chosen, best = count, times[count]
    return chosen


@contextmanager
def timed_threads(chooser: ThreadChooser, tokens: int) -> Iterator[None]:
    """Within: PyTorch runs on the threads that ``chooser`` names, and it is told how long ``tokens`` tokens took."""
    import torch

    threads = chooser.next()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    yield
    chooser.took(threads, (time.perf_counter() - start) / max(1, tokens))
