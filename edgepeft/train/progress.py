"""How far training is, on standard error: a bar, or a line at the start and one at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Self


def progress_callback(epochs: int, describe: Callable[[Mapping[str, float]], str]) -> Any:
    """A ``TrainerCallback`` that shows steps, time left, and the validation scores of the last epoch.

    ``describe`` puts the metrics of an evaluation into words.
    """
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def __init__(self) -> None:
            self.bar = _bar()
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


class StepBar:
    """A bar over training steps; a context manager."""

    def __init__(self, steps: int) -> None:
        self._bar = _bar()
        self._task = self._bar.add_task("training", total=steps)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, done: int) -> None:
        """So many steps are made."""
        self._bar.update(self._task, completed=done)

    def note(self, text: str) -> None:
        """What the last measurement found."""
        self._bar.update(self._task, description=text)


class NoBar:
    """Stands for a bar that is not drawn."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, done: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class StepLines(NoBar):
    """For logs, where no bar is drawn: a line where training begins, and one at its end."""

    def __init__(self, steps: int, epochs: int) -> None:
        self._steps, self._epochs, self._done, self._last = steps, epochs, 0, ""

    def __enter__(self) -> Self:
        self._start = monotonic()
        sys.stderr.write(f"training: {self._steps:,} steps, at most {self._epochs:g} epochs\n")
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            took = monotonic() - self._start
            sys.stderr.write(f"trained: {self._done:,} steps in {took:.0f} s{self._last}\n")

    def step(self, done: int) -> None:
        """So many steps are made."""
        self._done = done

    def note(self, text: str) -> None:
        """What the last measurement found."""
        self._last = f"; {text.partition(': ')[2] or text}"


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


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Standard output belongs to results (--json).
    return Progress(*columns, console=Console(stderr=True))
