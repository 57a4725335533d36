"""The training loop of a classifier: steps over batches of similar length, scores an epoch, the best epoch kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .batches import Row
from .problem import Problem
from .steps import NotFiniteLossError, Run
from .tokenizer import HubTokenizer
from .trainer import seeded, shown

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Scores:
    """What a classifier does on the validation rows; ``loss`` is the mean cross-entropy in nats, of numbers the mean square.

    Of numbers there are ``mean_error`` (absolute) and ``correlation`` in place of accuracy and F1.
    """

    accuracy: float | None
    macro_f1: float | None
    loss: float
    mean_error: float | None = None
    correlation: float | None = None


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; ``patience`` counts epochs without a better macro F1, ``None`` for never stop.

    ``threads`` is ``None`` for as many as turn out fastest.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    patience: int | None
    threads: int | None


@dataclass(frozen=True)
class Course:
    """What a training run did; ``train_loss`` has the mean loss of each epoch, ``best_epoch`` counts from 1.

    ``row_before`` and ``row_after`` ``[rows]`` are :meth:`.Problem.row_scores` of the validation rows, ``scores`` those of each
    epoch. ``threads`` is the number that was taken in the end, ``cached_layers`` how many layers were run once a row only.
    ``stopped`` says why it ended early, where the loss was no number any more.
    """

    before: Scores
    after: Scores
    train_loss: tuple[float, ...]
    best_epoch: int
    row_before: npt.NDArray[np.float64]
    row_after: npt.NDArray[np.float64]
    scores: tuple[Scores, ...] = ()
    threads: int = 1
    cached_layers: int = 0
    stopped: str = ""
    step_loss: tuple[float, ...] = field(default=(), repr=False)


def fit(
    model: nn.Module,
    tokenizer: HubTokenizer,
    train: Sequence[Row],
    validation: Sequence[Row],
    schedule: Schedule,
    problem: Problem,
    *,
    progress: bool | None,
) -> Course:
    """Train ``model`` (a PeftModel) in place and leave it at its best epoch: by validation macro F1, of numbers by mean error.

    Batches are made of rows of similar length and padded to the longest. A loss that is no number ends the training; the best
    epoch before it is kept. Raises :class:`InputError` where there is none.
    """
    metric, greater = problem.metric
    with seeded(schedule.seed, None):
        run = Run(
            model,
            tokenizer,
            train,
            batch_size=schedule.batch_size,
            learning_rate=schedule.learning_rate,
            total_steps=schedule.epochs * -(-len(train) // schedule.batch_size),
            seed=schedule.seed,
            threads=schedule.threads,
        )
        with run, _bar(progress, run.total_steps, schedule.epochs) as bar:
            run.keep_states(validation)
            before, row_before = _measure(run, validation, problem)
            best: tuple[float, int, Scores, npt.NDArray[np.float64], Any] | None = None
            losses: list[float] = []
            scores: list[Scores] = []
            stopped = ""
            for epoch in range(1, schedule.epochs + 1):
                try:
                    losses.append(float(np.mean(run.advance(run.steps_per_epoch, bar.step))))
                except NotFiniteLossError as error:
                    if best is None:
                        raise InputError(str(error)) from error
                    stopped = f"{error}. Epoch {best[1]} was kept"
                    break
                mine, row_mine = _measure(run, validation, problem)
                scores.append(mine)
                bar.note(f"epoch {epoch}/{schedule.epochs}: {describe(mine)}")
                value = float(getattr(mine, metric)) * (1 if greater else -1)
                if best is None or value > best[0]:
                    best = (value, epoch, mine, row_mine, run.weights())
                if schedule.patience is not None and epoch - best[1] >= schedule.patience:
                    break
            if best is None:
                raise InputError(f"epochs must be greater than 0, found {schedule.epochs}")
            run.load(best[4])
    return Course(
        before=before,
        after=best[2],
        train_loss=tuple(losses),
        best_epoch=best[1],
        row_before=row_before,
        row_after=best[3],
        scores=tuple(scores),
        threads=run.threads,
        cached_layers=run.cached_layers,
        stopped=stopped,
        step_loss=tuple(run.losses),
    )


def describe(scores: Scores) -> str:
    """Scores in words."""
    if scores.accuracy is None:
        return f"mean error {scores.mean_error:.3f}, correlation {scores.correlation:.3f}"
    return f"accuracy {scores.accuracy:.3f}, macro F1 {scores.macro_f1:.3f}"


def _measure(run: Run, rows: Sequence[Row], problem: Problem) -> tuple[Scores, npt.NDArray[np.float64]]:
    logits, loss = run.evaluate(rows)
    targets = np.array([row.target for row in rows])
    found: Mapping[str, float] = problem.score(logits, targets)
    names = ("accuracy", "macro_f1", "mean_error", "correlation")
    return Scores(loss=loss, **{name: found.get(name) for name in names}), problem.row_scores(logits, targets)


def _bar(progress: bool | None, steps: int, epochs: int) -> Any:
    from .progress import NoBar, StepBar, StepLines

    if shown(progress):
        return StepBar(steps)
    return StepLines(steps, epochs) if progress is None else NoBar()
