"""The learning rate range test: a few steps at rising rates, and the rate at which the loss falls fastest (Smith 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .methods import Settings
from .steps import NotFiniteLossError, Run

if TYPE_CHECKING:
    from .batches import Row
    from .workbench import Workbench

_LOWEST, _HIGHEST = 1e-5, 1e-1
STEPS = 40
#: Half-life of the smoothed loss in steps, about: single batches scatter more than the loss falls.
_SMOOTHING = 0.8
#: The test ends where the smoothed loss is so many times its smallest.
_DIVERGED = 2.0


@dataclass(frozen=True)
class RangeTest:
    """Rates tried, the smoothed loss at each, and the rate to begin with."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    rate: float


def range_test(
    bench: Workbench, rows: Sequence[Row], settings: Settings, *, batch_size: int, seed: int, threads: int | None
) -> RangeTest:
    """Train ``settings`` for 40 steps, the rate rising from 1e-5 to 1e-1, and find where the loss falls fastest.

    A run that is to last takes a rate somewhat below the one at which the loss is smallest here, since there the rates before it
    did part of the work: the returned one is a third of it, or the steepest one where that is larger.
    """
    growth = (_HIGHEST / _LOWEST) ** (1 / (STEPS - 1))
    with Run(
        bench.fresh(settings, seed),
        bench.base.tokenizer,
        rows,
        batch_size=batch_size,
        learning_rate=_LOWEST,
        total_steps=STEPS,
        seed=seed,
        threads=threads,
        rate_at=lambda step: growth**step,
        bf16=bench.bf16,
        temperature=bench.split.temperature,
    ) as run:
        run.keep_states()
        smoothed: list[float] = []
        for step in range(STEPS):
            try:
                (loss,) = run.advance(1)
            except NotFiniteLossError:
                break
            before = smoothed[-1] if smoothed else loss
            smoothed.append(_SMOOTHING * before + (1 - _SMOOTHING) * loss)
            if step > STEPS // 4 and smoothed[-1] > _DIVERGED * min(smoothed):
                break
    rates = [_LOWEST * growth**step for step in range(len(smoothed))]
    return RangeTest(tuple(rates), tuple(smoothed), choose_rate(rates, smoothed))


def choose_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate to begin with: a third of that of the smallest loss, but no less than that of the steepest fall."""
    if len(losses) < 3:
        return _LOWEST
    least = int(np.argmin(losses))
    slopes = np.gradient(np.asarray(losses), np.log(np.asarray(rates)))
    steepest = int(np.argmin(slopes[: max(2, least + 1)]))
    return _rounded(max(rates[least] / 3, rates[steepest]))


def _rounded(rate: float) -> float:
    """One digit: more is not known."""
    digits = -math.floor(math.log10(rate))
    return round(rate, digits)
