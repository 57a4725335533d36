"""Successive halving within a time: the trials of a search so far, and the best of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .device import enough_memory
from .folds import make_folds
from .leaks import row_keys

if TYPE_CHECKING:
    from .expected_gain import ExpectedGain
    from .trials import Candidate, Kind, Trial
    from .workbench import Workbench

#: A search goes on with a new setting only where it is better by so many standard errors of the paired difference: of many that are
#: tried, some look better by chance.
_WORTH_ERRORS = 0.5
_LEAST_STEPS, _MOST_STEPS = 40, 400
#: Of the time that is left, the share that is planned for steps: networks are made, judged and written too.
_FOR_STEPS = 0.9
_EPOCHS = 4


class Search:
    """Trials so far, the best of them, and the time that is left.

    Args:
        bench: The base and the rows.
        budget_s: Seconds from now on for all trials and for the winner's training on all rows.
        batch_size: Rows in a step.
        seed: Of the folds, initial weights and orders.
        threads: PyTorch's threads.
        announce: Is called with a line of text for each trial.
    """

    def __init__(
        self, bench: Workbench, budget_s: float, batch_size: int, seed: int, threads: int | None, announce: Any
    ) -> None:
        self.bench, self.batch_size, self.seed, self.threads, self.announce = bench, batch_size, seed, threads, announce
        self.folds = make_folds([(row.target, row.source) for row in bench.rows], seed, row_keys(bench.split.train))
        self.steps = max(_LEAST_STEPS, min(_MOST_STEPS, _EPOCHS * -(-len(self.folds[0][0]) // batch_size)))
        self.short = max(_LEAST_STEPS // 2, self.steps // 3)
        self.ends = time.monotonic() + budget_s
        self.trials: list[Trial] = []
        self.best: Trial | None = None
        self.left: list[str] = []
        self._step_s: dict[Kind, float] = {}
        self._steps_of: dict[Kind, int] = {}
        self._expected: ExpectedGain | None = None

    @property
    def takes_memory(self) -> str:
        """What can be lowered where memory runs out."""
        return f"--batch-size ({self.batch_size}) or --max-length"

    def whole(self, kind: Kind) -> float:
        """How many times as long as on a fold the same training takes on all rows: more steps, of few rows larger ones."""
        from .trials import rows_a_step

        batch = rows_a_step(kind, self.batch_size)
        every, fold = len(self.bench.rows), len(self.folds[0][0])
        larger = (every / -(-every // batch)) / (fold / -(-fold // batch))
        return every / fold * larger

    def time_left(self, seconds: float = 0.0) -> bool:
        """Whether so many seconds are left beside those that training the best setting on all rows takes."""
        last = 0.0
        if self.best is not None:
            kind = self.best.candidate.kind
            last = self._seconds(kind, self.best.steps * self.whole(kind))
        return time.monotonic() + seconds + last < self.ends

    def time_for_steps(self, steps: int) -> bool:
        """Whether there is time for so many steps of fine-tuning, by what steps took so far."""
        return self.time_left(self._seconds("fine-tune", steps))

    def note_steps(self, kind: Kind, steps: float, seconds: float) -> None:
        """So many steps took so long; later trials of that kind are expected to take no less."""
        if steps:
            self._step_s[kind] = max(self._step_s.get(kind, 0.0), seconds / steps)

    def prefer(
        self, name: str, candidate: Candidate, steps: int, expected: ExpectedGain, later: ExpectedGain | None = None
    ) -> None:
        """A candidate that is ``expected`` to be better than the best, by what was measured elsewhere: judgements are few.

        It becomes the best if a gain is still to be expected after it is judged; what is tried of other kinds then has to overcome
        what it gains over them, ``later``, by default as much. It is judged on as many folds as half of the time allows, with its
        training on all rows, and on one at least. It gets fewer steps, at a rate that is higher by as much, where there is no time
        for all of them on a fold and on all rows, and is left out where a third would be too many. Those of its kind that are tried
        later get as many.
        """
        from .trials import step_seconds

        room, whole = 0.0, self.whole(candidate.kind)
        if self.time_left():
            with enough_memory(self.takes_memory):
                each = step_seconds(self.bench, candidate, self.folds[0][0], self.batch_size, self.seed, self.threads)
            self.note_steps(candidate.kind, 1, each)
            room = _FOR_STEPS * (self.ends - time.monotonic()) / self._seconds(candidate.kind, 1 + whole)
        if room < steps // 3:
            self.left.append(f"{candidate.describe()} ({steps} steps)")
            return
        if room < steps:
            rate = candidate.settings.rate * steps / int(room)
            steps = int(room)
            candidate = replace(candidate, settings=replace(candidate.settings, learning_rate=float(f"{rate:.2g}")))
        half = (time.monotonic() + self.ends) / 2
        trial = self._tried(
            name, candidate, steps, lambda fold_s: time.monotonic() + (1 + whole) * fold_s < half
        )  # fmt: skip
        self._steps_of[candidate.kind] = steps
        if self.best is None or expected.after(trial.differences(self.best)) > 0:
            self.best, self._expected = trial, later or expected

    def stage(self, name: str, candidates: Sequence[Candidate]) -> None:
        """Successive halving: all candidates with a third of the steps, the better half with all. One may become the best."""
        if len(candidates) > 2 and candidates[0].kind != "features":  # whose fit takes no steps
            candidates = self._halved(name, candidates)
        for candidate in candidates:
            trial = self._try(name, candidate, self._steps_of.get(candidate.kind, self.steps))
            if trial is not None and (self.best is None or self._better(trial, self.best)):
                if self.best is not None and trial.candidate.kind != self.best.candidate.kind:
                    self._expected = None  # it was of the one that lost
                self.best = trial

    def alike(self, trial: Trial) -> bool:
        """Whether the best is not shown, nor expected, to be better than ``trial``, which had all its steps too."""
        return self.best is not None and not trial.first_round and not self._better(self.best, trial)

    def _better(self, one: Trial, other: Trial) -> bool:
        """Whether one is shown to be better than the other, or expected to be: the best may have been preferred to other kinds."""
        if self._expected is None or one.candidate.kind == other.candidate.kind:
            return clearly_better(one, other)
        expected = self._expected if one is self.best else self._expected.reversed
        return expected.after(one.differences(other)) > 0

    def _halved(self, name: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        tried = []
        for candidate in candidates:
            own = self._steps_of.get(candidate.kind)
            steps = self.short if own is None else -(-own // 3)
            if (trial := self._try(name, candidate, steps, first_round=True)) is not None:
                tried.append(trial)
        better = sorted(range(len(tried)), key=lambda place: tried[place].key, reverse=True)[: -(-len(tried) // 2)]
        return [tried[place].candidate for place in sorted(better)]  # of those that are alike the first one wins

    def _seconds(self, kind: Kind, steps: float) -> float:
        """What so many steps are expected to take; by other kinds of training where this one is not known yet."""
        if kind == "features":
            return 0.0
        return steps * self._step_s.get(kind, max(self._step_s.values(), default=0.0))

    def _try(self, name: str, candidate: Candidate, steps: int, *, first_round: bool = False) -> Trial | None:
        expected = self._seconds(candidate.kind, steps * len(self.folds))
        if self.trials and not self.time_left(expected):
            self.left.append(f"{candidate.describe()} ({steps} steps)")
            return None
        return self._tried(name, candidate, steps, first_round=first_round)

    def _tried(
        self,
        name: str,
        candidate: Candidate,
        steps: int,
        goes_on: Callable[[float], bool] = lambda _: True,
        *,
        first_round: bool = False,
    ) -> Trial:
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
                goes_on=goes_on,
            )
        trial = replace(trial, first_round=first_round)
        self.trials.append(trial)
        if candidate.kind != "features":
            self.note_steps(candidate.kind, steps * trial.folds, trial.seconds)
        made = f", {steps} steps" if trial.steps_made else ""
        self.announce(f"{name}: {candidate.describe()}{made}: accuracy {trial.accuracy:.3f} in {trial.seconds:.0f} s")
        return trial


def clearly_better(trial: Trial, best: Trial) -> bool:
    """Whether ``trial`` is better than ``best`` by half a standard error of the paired difference."""
    change = trial.minus(best)
    error = (change.upper - change.lower) / (2 * 1.96)
    return change.estimate > _WORTH_ERRORS * error
