"""Trials of a search: settings trained and judged out of fold, on the same folds for all."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..metrics.intervals import Interval, percentile_interval, resampled_rows
from .contrast import CONTRAST_BATCH, contrast, shuffled_batches
from .even_attention import attend_evenly
from .frozen_features import features, fit_head, head_of, solve_head
from .methods import Settings
from .steps import NotFiniteLossError, Run

if TYPE_CHECKING:
    from .batches import Row
    from .workbench import Workbench

#: ``fine-tune``: gradient steps over adapter and head. ``features``: logistic regression on frozen features. ``contrast``: the
#: adapter is taught by contrast first, and logistic regression then fits the head.
Kind = Literal["fine-tune", "features", "contrast"]


@dataclass(frozen=True)
class Candidate:
    """What a trial trains. ``strength`` is the C of logistic regression, where there is one.

    ``even`` names the projection of keys whose gain starts at zero, so that the last layer attends to all tokens alike
    (:mod:`.even_attention`); fine-tuning then starts from a head by logistic regression too.
    """

    settings: Settings
    kind: Kind = "fine-tune"
    strength: float = 1.0
    even: str | None = None

    def describe(self) -> str:
        """In a few words."""
        start = ", from even attention" if self.even else ""
        if self.kind == "features":
            means = " under even attention" if self.even else ""
            return f"head on frozen features{means}, C={self.strength:g}"
        if self.kind == "contrast":
            return f"contrast, then head: {self.settings.describe()}{start}, C={self.strength:g}"
        return f"{self.settings.describe()}{start}"


@dataclass(frozen=True)
class Trial:
    """A candidate, judged: for each judged row the share of its judgements that were right, and its mean loss in nats.

    ``places`` are those of the judged rows among all; ``folds`` is how many times it was trained. ``first_round`` trials got a part
    of their steps, to see which candidates are worth all of them.
    """

    candidate: Candidate
    stage: str
    steps: int
    places: tuple[int, ...]
    right: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    seconds: float
    folds: int
    first_round: bool = False

    @property
    def steps_made(self) -> int:
        """Steps that were made for it: a head on frozen features is solved for."""
        return 0 if self.candidate.kind == "features" else self.steps

    @property
    def accuracy(self) -> float:
        """The mean over rows."""
        return float(self.right.mean())

    @property
    def key(self) -> tuple[float, float]:
        """By accuracy; where that is equal by loss."""
        return self.accuracy, -float(self.loss.mean())

    @property
    def interval(self) -> Interval:
        """Accuracy with its 95 % interval, by the bootstrap over rows."""
        return bootstrap(self.right)

    def differences(self, other: Trial) -> npt.NDArray[np.float64]:
        """What this trial has right minus what ``other`` has, for each of the rows that both were judged on ``[rows]``."""
        theirs = dict(zip(other.places, other.right, strict=True))
        return np.array(
            [mine - theirs[place] for place, mine in zip(self.places, self.right, strict=True) if place in theirs]
        )

    def minus(self, other: Trial) -> Interval:
        """The accuracy of this trial minus that of ``other``, on the rows that both were judged on, with its 95 % interval."""
        return bootstrap(self.differences(other))


def bootstrap(values: npt.NDArray[np.float64]) -> Interval:
    """The mean of ``values`` ``[rows]`` and its 95 % percentile interval."""
    draws = np.array([values[rows].mean() for rows in resampled_rows(len(values))])
    return percentile_interval(float(values.mean()), draws)


def run_trial(
    bench: Workbench,
    candidate: Candidate,
    folds: Sequence[tuple[list[int], list[int]]],
    *,
    stage: str,
    steps: int,
    batch_size: int,
    seed: int,
    threads: int | None,
    goes_on: Callable[[float], bool] = lambda _: True,
) -> Trial:
    """Train ``candidate`` on every fold and judge it on the fold's other rows.

    The first fold is judged in any case, each further one where ``goes_on``, which is given the seconds that a fold takes.
    """
    start = time.monotonic()
    right: dict[int, list[float]] = defaultdict(list)
    loss: dict[int, list[float]] = defaultdict(list)
    frozen = _frozen_features(bench, candidate, batch_size, seed, threads) if candidate.kind == "features" else None
    done = 0
    for number, (train, held) in enumerate(folds):
        if number and not goes_on((time.monotonic() - start) / number):
            break
        done += 1
        judged = [bench.rows[place] for place in held]
        if frozen is not None:
            rows = [bench.rows[place] for place in train]
            weight, bias = solve_head(
                frozen[train], rows, len(bench.problem.labels), candidate.strength, seed, bench.split.temperature
            )
            _note(right, loss, held, judged, frozen[held] @ weight.T + bias)
            continue
        rows = [bench.rows[place] for place in train]
        try:
            run = trained(bench, candidate, rows, steps, batch_size, seed + number, threads)
        except NotFiniteLossError:  # a candidate like any other, and the worst
            for place in held:
                right[place].append(0.0)
                loss[place].append(float("inf"))
            continue
        with run:
            logits, _ = run.evaluate(judged)
        _note(right, loss, held, judged, logits)
    places = sorted(right)
    return Trial(
        candidate=candidate,
        stage=stage,
        steps=steps,
        places=tuple(places),
        right=np.array([np.mean(right[place]) for place in places]),
        loss=np.array([np.mean(loss[place]) for place in places]),
        seconds=time.monotonic() - start,
        folds=done,
    )


def _note(
    right: dict[int, list[float]],
    loss: dict[int, list[float]],
    places: Sequence[int],
    rows: Sequence[Row],
    logits: npt.NDArray[np.floating],
) -> None:
    """Add the judgements of rows to those of the rows at their places."""
    share = logits - logits.max(axis=1, keepdims=True)
    log_likelihood = share - np.log(np.exp(share).sum(axis=1, keepdims=True))
    for place, row, mine in zip(places, rows, log_likelihood, strict=True):
        right[place].append(float(mine.argmax() == row.target))
        loss[place].append(-float(mine[row.target]))


def _frozen_features(
    bench: Workbench, candidate: Candidate, batch_size: int, seed: int, threads: int | None
) -> npt.NDArray[np.float32]:
    """What enters the head of a network that is not trained, for all rows: run once for all penalties and folds."""
    key = ("features", candidate.even, seed)
    if key not in bench.known:
        run = _run(bench, candidate, bench.rows, 1, batch_size, seed, threads)
        with run:
            bench.known[key] = features(run, bench.rows, head_of(run.model, len(bench.problem.labels)))
    return bench.known[key]


def rows_a_step(kind: Kind, batch_size: int) -> int:
    """Rows in a step: those asked for, and for contrast no fewer than it takes to compare."""
    return max(batch_size, CONTRAST_BATCH) if kind == "contrast" else batch_size


def step_seconds(
    bench: Workbench,
    candidate: Candidate,
    places: Sequence[int],
    batch_size: int,
    seed: int,
    threads: int | None,
) -> float:
    """Seconds that a step of ``candidate`` takes over the rows at ``places``: of the second and third, since the first warms up.

    A loss that is no number ends them; the trial itself will tell.
    """
    rows = [bench.rows[place] for place in places]
    run = _run(bench, candidate, rows, 3, batch_size, seed, threads)
    with run:
        run.keep_states()
        start = time.monotonic()
        with suppress(NotFiniteLossError):
            run.advance(1)
            start = time.monotonic()
            run.advance(2)
        return (time.monotonic() - start) / 2


def trained(
    bench: Workbench,
    candidate: Candidate,
    rows: Sequence[Row],
    steps: int,
    batch_size: int,
    seed: int,
    threads: int | None,
) -> Run:
    """A run over ``rows`` that has ended; its model is what the candidate gives.

    Raises:
        NotFiniteLossError: The loss became no number.
    """
    labels = len(bench.problem.labels)
    run = _run(bench, candidate, rows, steps, batch_size, seed, threads)
    with run:
        run.keep_states()
        if candidate.kind == "fine-tune" and candidate.even is not None:
            fit_head(run, rows, labels, candidate.strength, seed, bench.split.temperature)
        if candidate.kind != "features":
            run.advance(steps)
        if candidate.kind != "fine-tune":
            fit_head(run, rows, labels, candidate.strength, seed, bench.split.temperature)
    return run


def _run(
    bench: Workbench,
    candidate: Candidate,
    rows: Sequence[Row],
    steps: int,
    batch_size: int,
    seed: int,
    threads: int | None,
) -> Run:
    """A run that has not begun, over a fresh network as the candidate wants it."""
    labels = len(bench.problem.labels)
    head_alone = candidate.kind == "features" and candidate.even is None
    settings = Settings("head-only") if head_alone else candidate.settings
    model = bench.fresh(settings, seed, steps=steps)
    if candidate.even is not None:
        attend_evenly(model, candidate.even)
    head = head_of(model, labels) if candidate.kind != "fine-tune" else None

    by_contrast: dict[str, Any] = {}
    batch_size = rows_a_step(candidate.kind, batch_size)
    if candidate.kind == "contrast":
        by_contrast = {"loss_of": lambda run, batch: contrast(run, batch, head), "epoch_of": shuffled_batches}
    return Run(
        model,
        bench.base.tokenizer,
        rows,
        batch_size=batch_size,
        learning_rate=settings.rate,
        total_steps=steps,
        seed=seed,
        threads=threads,
        bf16=bench.bf16,
        temperature=bench.split.temperature,
        **by_contrast,
    )
