"""Successive halving within a time: the trials of a search so far, and the best of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .device import enough_memory
from .leaks import row_keys

if TYPE_CHECKING:
    from .trials import Candidate, Trial
    from .workbench import Workbench

#: A search goes on with a new setting only where it is better by so many standard errors of the paired difference: of many that are
#: tried, some look better by chance.
_WORTH_ERRORS = 0.5
_LEAST_STEPS, _MOST_STEPS = 40, 400
_EPOCHS = 4


class Search:
    """Trials so far, the best of them, and the time that is left."""

    def __init__(
        self, bench: Workbench, budget_s: float, batch_size: int, seed: int, threads: int | None, announce: Any
    ) -> None:
        from .trials import make_folds

        self.bench, self.batch_size, self.seed, self.threads, self.announce = bench, batch_size, seed, threads, announce
        self.folds = make_folds([(row.target, row.source) for row in bench.rows], seed, row_keys(bench.split.train))
        self.steps = max(_LEAST_STEPS, min(_MOST_STEPS, _EPOCHS * -(-len(self.folds[0][0]) // batch_size)))
        self.ends = time.monotonic() + budget_s
        self.trials: list[Trial] = []
        self.best: Trial | None = None
        self.left: list[str] = []

    @property
    def takes_memory(self) -> str:
        """What can be lowered where memory runs out."""
        return f"--batch-size ({self.batch_size}) or --max-length"

    def time_left(self) -> bool:
        """Whether the budget is not used up."""
        return time.monotonic() < self.ends

    def prefer(self, name: str, candidate: Candidate, steps: int) -> None:
        """A candidate that becomes the best unless it is shown to be worse (95 %): few judgements seldom show what is gained.

        It is judged on as many folds as half of the time left is enough for, on one at least where there is any time.
        """
        if not self.time_left():
            self.left.append(f"{candidate.describe()} ({steps} steps)")
            return
        trial = self._tried(name, candidate, steps, (time.monotonic() + self.ends) / 2)
        if self.best is None or trial.minus(self.best).upper >= 0:
            self.best = trial

    def stage(self, name: str, candidates: Sequence[Candidate]) -> None:
        """Successive halving: all candidates with a third of the steps, the better half with all. One may become the best."""
        short = max(_LEAST_STEPS // 2, self.steps // 3)
        if len(candidates) > 2 and candidates[0].kind != "features":  # whose fit takes no steps
            candidates = self._halved(name, candidates, short)
        for candidate in candidates:
            trial = self._try(name, candidate, self.steps)
            if trial is not None and (self.best is None or clearly_better(trial, self.best)):
                self.best = trial

    def _halved(self, name: str, candidates: Sequence[Candidate], steps: int) -> list[Candidate]:
        tried = [trial for candidate in candidates if (trial := self._try(name, candidate, steps)) is not None]
        tried.sort(key=lambda trial: trial.key, reverse=True)
        return [trial.candidate for trial in tried[: -(-len(tried) // 2)]]

    def _try(self, name: str, candidate: Candidate, steps: int) -> Trial | None:
        known = [
            trial.seconds / max(1, trial.steps * trial.folds)
            for trial in self.trials
            if trial.candidate.kind == candidate.kind
        ]
        expected = steps * len(self.folds) * max(known, default=0.0)
        if self.trials and time.monotonic() + expected > self.ends:
            self.left.append(f"{candidate.describe()} ({steps} steps)")
            return None
        return self._tried(name, candidate, steps, math.inf)

    def _tried(self, name: str, candidate: Candidate, steps: int, until: float) -> Trial:
        from .trials import run_trial

        with enough_memory(self.takes_memory):
            trial = run_trial(
                self.bench,
                candidate,
                self.folds,
                stage=name,
                steps=steps,
                batch_size=self.batch_size,
                seed=self.seed,
                threads=self.threads,
                until=until,
            )
        self.trials.append(trial)
        self.announce(
            f"{name}: {candidate.describe()}, {steps} steps: accuracy {trial.accuracy:.3f} in {trial.seconds:.0f} s"
        )
        return trial


def clearly_better(trial: Trial, best: Trial) -> bool:
    """Whether ``trial`` is better than ``best`` by half a standard error of the paired difference."""
    change = trial.minus(best)
    error = (change.upper - change.lower) / (2 * 1.96)
    return change.estimate > _WORTH_ERRORS * error
