"""The training loop of a classifier: steps over batches of similar length, scores an epoch, the best epoch kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .batches import Row
from .device import enough_memory
from .problem import Problem
from .processes import group
from .reporters import Reports
from .steps import NotFiniteLossError, Run
from .tokenizer import HubTokenizer
from .trainer import seeded, shown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .resume import Keeper


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

    ``threads`` is ``None`` for as many as turn out fastest; ``bf16`` lets steps compute in bfloat16, ``checkpointing`` lets layers
    compute their activations again in the backward pass. ``temperature`` mixes rows of several sources (:class:`.Mixture`).
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    patience: int | None
    threads: int | None
    bf16: bool = False
    checkpointing: bool = False
    temperature: float = 1.0


@dataclass(frozen=True)
class Course:
    """What a training run did; ``train_loss`` has the mean loss of each epoch, ``best_epoch`` counts from 1.

    ``row_before`` and ``row_after`` ``[rows]`` are :meth:`.Problem.row_scores` of the validation rows, ``scores`` those of each
    epoch. ``threads`` is the number that was taken in the end, ``cached_layers`` how many layers were run once a row only.
    ``stopped`` says why it ended early, where the loss was no number any more. ``general`` is what was measured on rows of other
    domains, before and at the best epoch, where there are any. ``logits_before`` and ``logits_after`` ``[rows, labels]`` are those
    of the validation rows, where each was asked once.
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
    general: tuple[Measured, Measured] | None = None
    logits_before: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    logits_after: npt.NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Measured:
    """Scores on some rows, those of each row ``[rows]``, and its logits ``[rows, labels]``."""

    scores: Scores
    rows: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32]

    def as_dict(self) -> dict[str, Any]:
        """As a kept state holds it."""
        import torch

        return {
            "scores": asdict(self.scores),
            "rows": torch.from_numpy(self.rows),
            "logits": torch.from_numpy(self.logits),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Measured:
        """From :meth:`as_dict`."""
        return cls(Scores(**state["scores"]), state["rows"].numpy(), state["logits"].numpy())


@dataclass(frozen=True)
class _Best:
    """The best epoch so far: its value (more is better), what was measured of it and in other domains, and the weights."""

    value: float
    epoch: int
    mine: Measured
    general: Measured | None
    weights: list[torch.Tensor]

    def as_dict(self) -> dict[str, Any]:
        """As a kept state holds it."""
        general = None if self.general is None else self.general.as_dict()
        return {**vars(self), "mine": self.mine.as_dict(), "general": general}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> _Best:
        """From :meth:`as_dict`."""
        general = None if state["general"] is None else Measured.of(state["general"])
        return cls(**{**state, "mine": Measured.of(state["mine"]), "general": general})


def fit(
    model: nn.Module,
    tokenizer: HubTokenizer,
    train: Sequence[Row],
    validation: Sequence[Row],
    schedule: Schedule,
    problem: Problem,
    *,
    progress: bool | None,
    keeper: Keeper | None = None,
    on_epoch: Callable[[int, Scores], None] | None = None,
    report_to: Sequence[Any] = (),
    settings: Mapping[str, Any] | None = None,
    loss_of: Callable[[Run, Sequence[Row]], torch.Tensor] | None = None,
    general: Sequence[Row] = (),
) -> Course:
    """Train ``model`` (a PeftModel) in place and leave it at its best epoch: by validation macro F1, of numbers by mean error.

    ``keeper`` keeps the state of the run, and gives one to go on from; ``on_epoch`` is told the scores of each epoch.
    ``report_to`` are callbacks of Trainer that are told of losses and scores, and of ``settings`` before them. ``loss_of`` gives
    the loss of a batch in place of the model's own. With rows of other domains, ``general``, the best epoch is that of the highest
    mean of both scores.

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
            bf16=schedule.bf16,
            checkpointing=schedule.checkpointing,
            loss_of=loss_of,
            temperature=schedule.temperature,
        )
        reports = Reports(report_to, settings or {}, model, schedule.epochs, run.total_steps)
        with (
            enough_memory(
                f"--batch-size ({schedule.batch_size}) or --max-length"
                f"{'' if schedule.checkpointing else ', or give --gradient-checkpointing'}"
            ),
            reports,
            run,
            _bar(progress, run.total_steps, schedule.epochs) as bar,
        ):
            run.keep_states([*validation, *general])
            kept = None if keeper is None else keeper.load()
            if kept is None:
                best: _Best | None = None
                before = measure_rows(run, validation, problem)
                general_before = measure_rows(run, general, problem) if general else None
                losses: list[float] = []
                scores: list[Scores] = []
            else:
                run.restore(kept["run"])
                best = None if kept["best"] is None else _Best.of(kept["best"])
                before = Measured.of(kept["before"])
                general_before = None if kept["general_before"] is None else Measured.of(kept["general_before"])
                losses, scores = list(kept["losses"]), [Scores(**each) for each in kept["scores"]]
            stopped = ""

            def keep() -> None:
                if keeper is not None:
                    keeper.save(
                        {
                            "run": run.state(),
                            "best": None if best is None else best.as_dict(),
                            "before": before.as_dict(),
                            "general_before": None if general_before is None else general_before.as_dict(),
                            "losses": losses,
                            "scores": [asdict(each) for each in scores],
                        }
                    )

            def on_step(done: int) -> None:
                bar.step(done)
                reports.step(done, done / run.steps_per_epoch, run.losses[-1], run.rate)
                if keeper is not None and group().from_first(keeper.due) and done % run.steps_per_epoch:
                    keep()

            for epoch in range(len(losses) + 1, schedule.epochs + 1):
                if best is not None and schedule.patience is not None and epoch - 1 - best.epoch >= schedule.patience:
                    break
                try:
                    run.advance(epoch * run.steps_per_epoch - len(run.losses), on_step)
                except NotFiniteLossError as error:
                    if best is None:
                        raise InputError(str(error)) from error
                    stopped = f"{error}. Epoch {best.epoch} was kept"
                    break
                losses.append(float(np.mean(run.losses[-run.steps_per_epoch :])))
                mine = measure_rows(run, validation, problem)
                scores.append(mine.scores)
                reports.scores(len(run.losses), epoch, asdict(mine.scores))
                bar.note(f"epoch {epoch}/{schedule.epochs}: {describe(mine.scores)}")
                beyond = measure_rows(run, general, problem) if general else None
                measured = [mine.scores] if beyond is None else [mine.scores, beyond.scores]
                value = float(np.mean([getattr(each, metric) for each in measured])) * (1 if greater else -1)
                if best is None or value > best.value:
                    best = _Best(value, epoch, mine, beyond, run.weights())
                keep()
                if on_epoch is not None:
                    on_epoch(epoch, mine.scores)
            if best is None:
                raise InputError(f"epochs must be greater than 0, found {schedule.epochs}")
            run.load(best.weights)
    return Course(
        before=before.scores,
        after=best.mine.scores,
        train_loss=tuple(losses),
        best_epoch=best.epoch,
        row_before=before.rows,
        row_after=best.mine.rows,
        scores=tuple(scores),
        threads=run.threads,
        cached_layers=run.cached_layers,
        stopped=stopped,
        step_loss=tuple(run.losses),
        general=None if general_before is None or best.general is None else (general_before, best.general),
        logits_before=before.logits,
        logits_after=best.mine.logits,
    )


def describe(scores: Scores) -> str:
    """Scores in words."""
    if scores.accuracy is None:
        return f"mean error {scores.mean_error:.3f}, correlation {scores.correlation:.3f}"
    return f"accuracy {scores.accuracy:.3f}, macro F1 {scores.macro_f1:.3f}"


def measure_rows(run: Run, rows: Sequence[Row], problem: Problem) -> Measured:
    """What the network of ``run`` does on ``rows``."""
    logits, loss = run.evaluate(rows)
    targets = np.array([row.target for row in rows])
    found: Mapping[str, float] = problem.score(logits, targets)
    names = ("accuracy", "macro_f1", "mean_error", "correlation")
    scores = Scores(loss=loss, **{name: found.get(name) for name in names})
    return Measured(scores, problem.row_scores(logits, targets), logits)


def _bar(progress: bool | None, steps: int, epochs: int) -> Any:
    from .progress import NoBar, StepBar, StepLines

    if shown(progress):
        return StepBar(steps)
    return StepLines(steps, epochs) if progress is None else NoBar()
