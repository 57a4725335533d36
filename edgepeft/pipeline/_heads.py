"""What the heads of adapters mean: from options, from the files beside a checkpoint, from the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..adapters.checkpoint import Checkpoint
from ..adapters.edits import Adapter
from ..adapters.head_files import head_beside
from ..base.task import task_of
from ..bundle import AdapterEntry, Head
from ..bundle.heads import is_numbered
from ..bundle.manifest import TaskEntry
from ..errors import InputError

Announce = Callable[[str], None]
_SHOWN = 6


def task_in(tasks: Mapping[str, TaskEntry], checkpoint: Checkpoint, name: str) -> str | None:
    """The task of a checkpoint over a base of several; ``None`` over a base of one.

    Raises :class:`InputError` where the checkpoint names none: its head could stand behind several tasks.
    """
    if not tasks:
        return None
    task = task_of(checkpoint.config.get("task_type"))
    if task is None or task not in tasks:
        raise InputError(
            f"adapter {name!r} ({checkpoint.source}) does not say for which of the base's tasks it is ({', '.join(tasks)}): put "
            "task_type into its adapter_config.json"
        )
    return task


def check_names(heads: Mapping[str, Head], adapters: Mapping[str, object]) -> None:
    """:class:`InputError` for a head of an adapter that is not there."""
    unknown = sorted(set(heads) - set(adapters))
    if unknown:
        raise InputError(
            f"--labels, --problem-type and --activation name an adapter, and there is none {unknown[0]!r}; there is: "
            f"{', '.join(sorted(adapters)) or 'none'}"
        )


def with_head(adapter: Adapter, checkpoint: Checkpoint, given: Head | None, base: Head, announce: Announce) -> Adapter:
    """``adapter`` with what was ``given`` of its head, else with what its folder says.

    Args:
        adapter: The adapter as it was read.
        checkpoint: Its folder.
        given: What options say of its head.
        base: The base's head.
        announce: Is called with a line of text where names come from the folder, or do not fit.
    """
    given = given or Head()
    beside, file = head_beside(checkpoint)
    if given.labels is None and beside.labels is not None:
        if file != "edgepeft_adapter.json" and not _fits(adapter, len(beside.labels), base):
            announce(
                f"adapter {adapter.name}: {file} in its folder names {len(beside.labels)} labels, which are not as many as its "
                "head has; they are not used"
            )
            beside = Head(task=beside.task)
        elif file != "edgepeft_adapter.json":
            announce(f"adapter {adapter.name}: labels {some(beside.labels or ())} from {file} in its folder")
    return replace(
        adapter,
        labels=given.labels or beside.labels,
        problem_type=given.problem_type or beside.problem_type,
        activation=given.activation or beside.activation,
    )


def _fits(adapter: Adapter, count: int, base: Head) -> bool:
    """Whether a head of ``count`` labels may be the adapter's: one that it brings is as wide, else the base's is."""
    widths = {override.tensor.shape[0] for override in adapter.overrides.values() if override.tensor.ndim <= 2}
    return count in widths or (base.labels is not None and count == len(base.labels))


def say_labels(name: str, named: bool, entry: AdapterEntry, base: Head, announce: Announce) -> None:
    """Say where the names of an adapter's labels are from, where nobody ``named`` them in an option or a folder."""
    if entry.labels is None or named:
        return
    if not is_numbered(entry.labels):
        if entry.labels == base.labels:
            announce(
                f"adapter {name}: labels {some(entry.labels)} are those of the base's config, which has as many. Where it was "
                f"trained on others, name them: --labels {name}=…"
            )
    elif len(entry.labels) > 1:
        announce(f"adapter {name}: its {len(entry.labels)} labels have no names; --labels {name}=a,b,… gives them some")


def said(head: Head) -> dict[str, Any]:
    """What was said of a head, as fields of an adapter's entry; a new problem type brings its usual activation."""
    fields: dict[str, Any] = {"labels": head.labels, "problem_type": head.problem_type, "activation": head.activation}
    found = {key: value for key, value in fields.items() if value is not None}
    if head.problem_type is not None:
        found["activation"] = head.activation
    return found


def some(labels: tuple[str, ...]) -> str:
    """The first few labels, and how many there are where that is more."""
    shown = ", ".join(labels[:_SHOWN])
    return shown if len(labels) <= _SHOWN else f"{shown}, … ({len(labels)} in all)"
