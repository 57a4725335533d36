"""The training loop: Hugging Face ``Trainer`` with what edgepeft wants of it, and the metrics of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..scratch import scratch_folder
from .tokenizer import HubTokenizer
from .trainer import COMMON, finite_trainer, seeded, train_shown

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer


@dataclass(frozen=True)
class Scores:
    """What a classifier does on the validation rows; ``loss`` is the mean cross-entropy in nats."""

    accuracy: float
    macro_f1: float
    loss: float


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


def score(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, float]:
    """Accuracy and macro F1 of ``logits`` ``[rows, labels]`` against label ids ``[rows]``.

    Macro F1 is the mean over the labels that occur in ``labels`` or are predicted, as scikit-learn computes it.
    """
    predicted = logits.argmax(axis=-1)
    f1 = []
    for label in np.union1d(labels, predicted):
        hits = int(((predicted == label) & (labels == label)).sum())
        f1.append(2 * hits / (int((predicted == label).sum()) + int((labels == label).sum())))
    return {"accuracy": float((predicted == labels).mean()), "macro_f1": float(np.mean(f1))}


def fit(
    model: PeftModel,
    tokenizer: HubTokenizer,
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    schedule: Schedule,
    *,
    progress: bool | None,
) -> Course:
    """Train ``model`` (a PeftModel) in place and leave it at its best epoch by validation macro F1.

    Rows are ``{"input_ids": [...], …, "labels": int}``. Batches are made of rows of similar length and padded to the
    longest. Raises :class:`InputError` at the first step whose loss is not finite.
    """
    from transformers import DataCollatorWithPadding, TrainingArguments

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
                metric_for_best_model="macro_f1",
                greater_is_better=True,
                seed=schedule.seed,
                **COMMON,
            ),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda output: score(output.predictions, output.label_ids),
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
    return f"accuracy {metrics['eval_accuracy']:.3f}, macro F1 {metrics['eval_macro_f1']:.3f}"


def _evaluate(trainer: Trainer) -> Scores:
    metrics = trainer.evaluate()
    return Scores(accuracy=metrics["eval_accuracy"], macro_f1=metrics["eval_macro_f1"], loss=metrics["eval_loss"])
