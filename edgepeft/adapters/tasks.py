"""Checkpoints that hold several tasks: which of them is meant, and PEFT's model for that one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

_TASK = re.compile(r"(?P<path>.+)#task=(?P<task>.*)", re.DOTALL)


def split_task(source: str | Path) -> tuple[str, int | None]:
    """``PATH#task=2`` as ``("PATH", 2)``, anything else as it is; a folder of that very name is a folder.

    Raises :class:`InputError` where no number follows.
    """
    text = str(source)
    match = _TASK.fullmatch(text)
    if match is None or Path(text).exists():
        return text, None
    if not re.fullmatch(r"[0-9]+", match["task"]):
        raise InputError(
            f"{text}: after #task= stands the number of one task of the checkpoint, for example {match['path']}#task=0"
        )
    return match["path"], int(match["task"])


def task_ids(checkpoint: Checkpoint, count_option: str) -> int | None:
    """The task that ``checkpoint`` was asked for, among the number in its config's ``count_option`` (empty: no tasks).

    Raises :class:`InputError` where none was named, one that it lacks, or one of a method without tasks.
    """
    task = checkpoint.task
    if not count_option:
        if task is not None:
            raise InputError(
                f"{checkpoint.source}: {checkpoint.peft_type} holds one adapter and no tasks; leave out #task={task}"
            )
        return None
    count = checkpoint.config.get(count_option)
    if not isinstance(count, int) or count < 1:
        raise InputError(
            f"{checkpoint.source}: the config of {checkpoint.peft_type} must give {count_option}, found {count!r}"
        )
    if task is None or task >= count:
        said = "" if task is None else f"; it has no task {task}"
        raise InputError(
            f"{checkpoint.source}: {checkpoint.peft_type} holds {count} tasks, and each is an adapter of its own{said}. Name one: "
            f"{checkpoint.path}#task=N, N from 0 to {count - 1}; for several give an adapter name to each"
        )
    return task


def ask_for_task(model: Any, task: int | None) -> None:
    """Let PEFT's ``model`` run every row for ``task``, which it takes as ``task_ids`` with every call."""
    if task is None:
        return
    import torch

    def hook(module: Any, args: Any, options: dict[str, Any]) -> Any:
        rows = options["input_ids"].shape[0]
        return args, {**options, "task_ids": torch.full((rows,), task, dtype=torch.int64)}

    model.register_forward_pre_hook(hook, with_kwargs=True)
