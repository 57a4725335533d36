"""The training loop: Hugging Face ``Trainer`` with what edgepeft wants of it, and the metrics of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..scratch import scratch_folder
from .problem import Problem
from .tokenizer import HubTokenizer
from .trainer import COMMON, finite_trainer, seeded, train_shown

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer


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
    """How long and how fast to train; ``patience`` counts epochs without a better macro F1, ``None`` for never stop."""

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    patience: int | None
    threads: int | None


@dataclass(frozen=True)
class Course:
    """What a training run did; ``train_loss`` has the mean loss of each epoch, ``best_epoch`` counts from 1."""

    before: Scores
    after: Scores
    train_loss: tuple[float, ...]
    best_epoch: int


def fit(
    model: PeftModel,
    tokenizer: HubTokenizer,
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    schedule: Schedule,
    problem: Problem,
    *,
    progress: bool | None,
) -> Course:
    """Train ``model`` (a PeftModel) in place and leave it at its best epoch: by validation macro F1, of numbers by mean error.

    Rows are ``{"input_ids": [...], …, "labels": int}``. Batches are made of rows of similar length and padded to the
    longest. Raises :class:`InputError` at the first step whose loss is not finite.
    """
    from transformers import DataCollatorWithPadding, TrainingArguments

    metric, greater = problem.metric
    # Sorted, so that evaluation pads as little as training does; the metrics do not depend on the order.
    validation = sorted(validation, key=lambda row: len(row["input_ids"]))
    with seeded(schedule.seed, schedule.threads), scratch_folder("train") as scratch:
        trainer = finite_trainer()(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=schedule.epochs,
                learning_rate=schedule.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=0.06,
                per_device_train_batch_size=schedule.batch_size,
                per_device_eval_batch_size=max(32, schedule.batch_size),
                train_sampling_strategy="group_by_length",
                metric_for_best_model=metric,
                greater_is_better=greater,
                seed=schedule.seed,
                **COMMON,
            ),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda output: problem.score(output.predictions, output.label_ids),
        )
        before = _evaluate(trainer)
        losses = train_shown(
            trainer, epochs=schedule.epochs, patience=schedule.patience, progress=progress, describe=_describe
        )
        after = _evaluate(trainer)
        steps_per_epoch = -(-len(train) // schedule.batch_size)
        best_epoch = round(trainer.state.best_global_step / steps_per_epoch)
    return Course(before=before, after=after, train_loss=losses, best_epoch=best_epoch)


def _describe(metrics: Mapping[str, float]) -> str:
    if "eval_mean_error" in metrics:
        return f"mean error {metrics['eval_mean_error']:.3f}, correlation {metrics['eval_correlation']:.3f}"
    return f"accuracy {metrics['eval_accuracy']:.3f}, macro F1 {metrics['eval_macro_f1']:.3f}"


def _evaluate(trainer: Trainer) -> Scores:
    metrics = trainer.evaluate()
    names = ("accuracy", "macro_f1", "mean_error", "correlation")
    return Scores(loss=metrics["eval_loss"], **{name: metrics.get(f"eval_{name}") for name in names})
