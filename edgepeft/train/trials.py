"""Trials of a search: settings trained and judged out of fold, on the same folds for all."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
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

#: Rows to judge on that are enough: beyond, one split of the data is as good as several.
_ENOUGH_ROWS = 200
_MOST_FOLDS = 4
#: Each fold is a training: with few rows, eight of them are what a search of minutes can pay for a setting.
_MOST_TRAININGS = 8
_HELD_SHARE = 0.2


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

    ``places`` are those of the judged rows among all; ``folds`` is how many times it was trained.
    """

    candidate: Candidate
    stage: str
    steps: int
    places: tuple[int, ...]
    right: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    seconds: float
    folds: int

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


def make_folds(
    targets: Sequence[Any], seed: int, keys: Sequence[Hashable] | None = None
) -> list[tuple[list[int], list[int]]]:
    """Places to train and to judge on: one split for large data, repeated stratified cross-validation for small.

    Folds are as many as the rarest label allows, four at most, and are drawn anew until 200 judgements are made or there are eight.
    Each label is on both sides of every fold.

    Args:
        targets: What each row is to give.
        seed: Of the draws.
        keys: What makes rows the same input (:func:`.leaks.row_keys`): such rows stay on one side. By default all differ.
    """
    if keys is not None:
        return _folds_of_groups(targets, seed, keys)
    generator = np.random.default_rng(seed)
    places: dict[Any, list[int]] = defaultdict(list)
    for place, target in enumerate(targets):
        places[target].append(place)
    least = min(len(mine) for mine in places.values())
    if _HELD_SHARE * len(targets) >= _ENOUGH_ROWS / 2 and _HELD_SHARE * least >= 2:
        held = sorted(
            place for mine in places.values() for place in generator.permutation(mine)[: round(_HELD_SHARE * len(mine))]
        )
        return [_sides(len(targets), held)]
    count = min(_MOST_FOLDS, least)
    repeats = max(1, min(_MOST_TRAININGS // count, -(-_ENOUGH_ROWS // len(targets))))
    folds = []
    for _ in range(repeats):
        parts: list[list[int]] = [[] for _ in range(count)]
        for mine in places.values():
            for turn, place in enumerate(generator.permutation(mine)):
                parts[turn % count].append(int(place))
        folds += [_sides(len(targets), sorted(part)) for part in parts]
    return folds


def _folds_of_groups(targets: Sequence[Any], seed: int, keys: Sequence[Hashable]) -> list[tuple[list[int], list[int]]]:
    """Folds of the first row of each key; the others follow it."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        groups[key].append(place)
    alike = list(groups.values())
    return [
        _sides(len(targets), sorted(place for number in held for place in alike[number]))
        for _, held in make_folds([targets[mine[0]] for mine in alike], seed)
    ]


def _sides(rows: int, held: list[int]) -> tuple[list[int], list[int]]:
    apart = set(held)
    return [place for place in range(rows) if place not in apart], [int(place) for place in held]


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
    if candidate.kind == "contrast":
        batch_size = max(batch_size, CONTRAST_BATCH)
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
