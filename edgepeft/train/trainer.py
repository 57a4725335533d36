"""What every training run wants of Hugging Face's ``Trainer``."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .processes import group
from .progress import lines_callback, progress_callback
from .steps import NotFiniteLossError

if TYPE_CHECKING:
    from transformers import Trainer

#: ``TrainingArguments``: measured and kept once an epoch, the best epoch's weights left at the end, nothing printed or reported.
COMMON: Mapping[str, Any] = {
    "weight_decay": 0.0,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "logging_strategy": "epoch",
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
    "label_names": ["labels"],
}


def finite_trainer() -> Any:
    """A ``Trainer`` class that prints nothing and raises :class:`NotFiniteLossError` at a step whose loss is not finite.

    In several processes each reads every batch; the collator keeps this process's share of it.
    """
    from transformers import PrinterCallback, Trainer

    class FiniteTrainer(Trainer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.remove_callback(PrinterCallback)

        def get_train_dataloader(self) -> Any:
            loader = super().get_train_dataloader()
            if group().several:  # accelerate would give each process batches of its own, and fill up the last ones
                shard = loader.batch_sampler
                shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
            return loader

        def training_step(self, *arguments: Any, **options: Any) -> Any:
            loss = super().training_step(*arguments, **options)
            if (together := group()).several:  # their mean is the batch's, and all see the same
                loss = loss / together.count
                together.add_up([loss])
            if not bool(loss.isfinite()):
                raise NotFiniteLossError(
                    f"the training loss became {float(loss)} at step {self.state.global_step + 1} with learning rate "
                    f"{self.args.learning_rate:g}; lower the learning rate, or check the texts and the base's weights"
                )
            return loss

    return FiniteTrainer


def train_shown(
    trainer: Trainer,
    *,
    epochs: int,
    patience: int | None,
    progress: bool | None,
    describe: Callable[[Mapping[str, float]], str],
    checkpoint: Path | None = None,
) -> str:
    """Train (from ``checkpoint`` on, where there is one), with a progress bar where that is wanted, else a line at start and end.

    Gives why it ended early where it broke, else no text.

    Stops after ``patience`` epochs without a better score; ``describe`` puts the scores of an evaluation into words. A loss that
    is no number ends the training too, and the weights of the best epoch are put back; raises :class:`InputError` where no epoch
    had ended.
    """
    from transformers import EarlyStoppingCallback

    if patience is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=patience))
    with ExitStack() as stack:
        if shown(progress):
            callback = progress_callback(epochs, describe)
            stack.callback(callback.bar.stop)
            trainer.add_callback(callback)
        elif progress is None:
            trainer.add_callback(lines_callback(describe))
        stopped = ""
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except NotFiniteLossError as error:
            best = trainer.state.best_model_checkpoint
            if best is None:
                raise InputError(str(error)) from error
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(trainer.model, load_peft_weights(best, device="cpu"))
            stopped = f"{error}. The best epoch before it was kept"
    return stopped


def shown(progress: bool | None) -> bool:
    """Whether to draw a progress bar: as asked, else on a terminal."""
    if progress is not None:
        return progress
    return sys.stderr.isatty() and os.environ.get("TQDM_DISABLE", "") in {"", "0"}


@contextmanager
def seeded(seed: int, threads: int | None) -> Iterator[None]:
    """Within: Python's, numpy's and torch's generators start from ``seed``, on ``threads`` threads; restored after."""
    import torch

    from .device import forked_random

    python, numpy_state, threads_before = random.getstate(), np.random.get_state(), torch.get_num_threads()
    with forked_random():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)
            random.setstate(python)
            np.random.set_state(numpy_state)
