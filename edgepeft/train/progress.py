"""How far training is, on standard error: a bar, or a line at the start and one at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any


def progress_callback(epochs: int, describe: Callable[[Mapping[str, float]], str]) -> Any:
    """A ``TrainerCallback`` that shows steps, time left, and the validation scores of the last epoch.

    ``describe`` puts the metrics of an evaluation into words.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def __init__(self) -> None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            # Standard output belongs to results (--json).
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=None)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(self.task, total=state.max_steps)
            self.bar.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(self.task, completed=state.global_step)

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            self.bar.update(self.task, description=f"epoch {round(state.epoch or 0)}/{epochs}: {describe(metrics)}")

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.stop()

    return Bar()


def lines_callback(describe: Callable[[Mapping[str, float]], str]) -> Any:
    """A ``TrainerCallback`` for logs, where no bar is drawn (``TQDM_DISABLE``, no terminal): what begins, and how it ended."""
    from transformers import TrainerCallback

    class Lines(TrainerCallback):
        def __init__(self) -> None:
            self.start = 0.0
            self.last = ""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.start = monotonic()
            sys.stderr.write(f"training: {state.max_steps:,} steps, at most {args.num_train_epochs:g} epochs\n")

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            self.last = f"; {describe(metrics)}"

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            took = monotonic() - self.start
            sys.stderr.write(f"trained: {state.global_step:,} steps in {took:.0f} s{self.last}\n")

    return Lines()
