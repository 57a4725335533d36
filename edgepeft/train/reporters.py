"""What Trainer reports to (TensorBoard, Weights & Biases, MLflow, …), also for runs that Trainer does not make."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..errors import InputError, MissingExtraError
from ..spelling import did_you_mean


def callbacks_of(names: Sequence[str], out: Path) -> list[Any]:
    """Trainer's own callbacks by their names there, ready to be told of a run that makes the adapter ``out``.

    TensorBoard's files go to ``runs/NAME`` beside the adapter, a folder a run, or where ``TENSORBOARD_LOGGING_DIR`` says.

    Raises:
        InputError: There is no such reporter.
        MissingExtraError: Its package is not installed.
    """
    if not names:
        return []
    from transformers.integrations import integration_utils

    known: Mapping[str, Any] = integration_utils.INTEGRATION_TO_CALLBACK
    found = []
    for name in dict.fromkeys(names):
        if name not in known:
            raise InputError(f"--report-to {name!r}{did_you_mean(name, known)}: there are {', '.join(sorted(known))}")
        try:
            callback = known[name]()
        except (RuntimeError, ImportError, AssertionError) as error:
            raise MissingExtraError(f"--report-to {name} needs a package that is not installed: {error}") from error
        if getattr(callback, "logging_dir", "") is None:
            callback.logging_dir = str(out.absolute().parent / "runs" / out.name / time.strftime("%Y%m%d-%H%M%S"))
        found.append(callback)
    return found


class Reports:
    """Tells callbacks of Trainer of a run that makes its own steps; a context manager.

    Args:
        callbacks: What :func:`callbacks_of` gives.
        settings: What is known of the run before it starts, by name.
        model: The network that is trained.
        epochs: How many there will be at most.
        steps: How many there will be at most.
    """

    def __init__(
        self, callbacks: Sequence[Any], settings: Mapping[str, Any], model: Any, epochs: int, steps: int
    ) -> None:
        self._callbacks = list(callbacks)
        if not self._callbacks:
            return
        from transformers import TrainerControl, TrainerState, TrainingArguments

        self._model = model
        self._arguments = TrainingArguments(
            output_dir=str(settings.get("out", "training")),
            run_name=Path(str(settings.get("out", "training"))).name,
            num_train_epochs=epochs,
            report_to="none",
            **{name: settings[name] for name in ("learning_rate", "seed") if settings.get(name) is not None},
        )
        self._state = TrainerState(max_steps=steps, num_train_epochs=epochs)
        self._control = TrainerControl()

    def __enter__(self) -> Self:
        self._tell("on_train_begin")
        return self

    def __exit__(self, *_: object) -> None:
        self._tell("on_train_end")

    def step(self, step: int, epoch: float, loss: float, rate: float) -> None:
        """A step was made, the ``step``-th from 1, with this loss and learning rate."""
        self._log(step, epoch, {"loss": loss, "learning_rate": rate})

    def scores(self, step: int, epoch: float, scores: Mapping[str, float | None]) -> None:
        """Something was measured after ``step`` steps."""
        self._log(step, epoch, {f"eval_{name}": value for name, value in scores.items() if value is not None})

    def _log(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        if not self._callbacks:
            return
        self._state.global_step, self._state.epoch = step, epoch
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._tell("on_log", logs={**finite, "epoch": epoch})

    def _tell(self, what: str, **more: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, what)(self._arguments, self._state, self._control, model=self._model, **more)
