"""What checkpoints say of the base that they are for: its tasks, its layers, its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..adapters.checkpoint import Checkpoint
from ..adapters.read import layers_of, method_of, task_ids
from ..base.replicate import LayerMap
from ..base.shared import check_shareable
from ..base.task import task_of
from ..errors import InputError


def named_tasks(checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """The task types that the checkpoints name; a method that nobody knows is an error."""
    for checkpoint in checkpoints.values():
        task_ids(checkpoint, method_of(checkpoint).tasks)
    types = {name: checkpoint.config.get("task_type") for name, checkpoint in checkpoints.items()}
    named = list(dict.fromkeys(value for value in types.values() if value))
    unnamed = [name for name, value in types.items() if not value]
    if len(named) > 1 and unnamed:
        raise InputError(
            f"adapters are for different tasks ({', '.join(named)}), and {unnamed[0]!r} does not say for which: put task_type "
            "into its adapter_config.json, or export it apart with --task"
        )
    return named


def several_tasks(task: str | None, peft_tasks: Sequence[str], mode: str) -> tuple[str, ...]:
    """The tasks of a base that is to serve several; empty for one."""
    asked = tuple(dict.fromkeys(each.strip() for each in task.split(","))) if task and "," in task else ()
    found = asked or (() if task else tuple(filter(None, map(task_of, peft_tasks))))
    if len(found) < 2:
        return ()
    check_shareable(found)
    if mode != "swap":
        raise InputError(
            f"adapters are for different tasks: {', '.join(found)}; --mode {mode} folds each into a base of its own task. "
            "Export those of each task apart"
        )
    return found


def layers_asked(checkpoints: Mapping[str, Checkpoint]) -> LayerMap:
    """The one ``layer_replication`` that the checkpoints name; several are an error."""
    maps = {name: layers_of(checkpoint) for name, checkpoint in checkpoints.items()}
    if len(set(maps.values())) > 1:
        said = ", ".join(f"{name}: {[list(pair) for pair in layers] or 'none'}" for name, layers in maps.items())
        raise InputError(
            f"adapters ask for different bases (layer_replication of {said}); one bundle has one base. Export them apart"
        )
    return next(iter(maps.values()), ())


def heads_brought(checkpoints: Mapping[str, Checkpoint]) -> set[str]:
    """Parameters of heads in checkpoints that name no task."""
    names = {name for each in checkpoints.values() if not each.config.get("task_type") for name in each.tensors}
    return {name for name in names if name.split(".")[0] in {"classifier", "score", "classification_head"}}
