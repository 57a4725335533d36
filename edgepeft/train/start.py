"""Training that starts from an adapter that there is (``--from``); of several from the one that is nearest to the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..strict_json import read_object
from .adapt import made_over
from .methods import Settings, Task, check_shipping
from .record import ADAPTER_FILE

if TYPE_CHECKING:
    from torch import nn

    from .base import BaseModel

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """An adapter to start from: its method and learning rate, its labels where it has a record, and its files' hash."""

    folder: Path
    settings: Settings
    labels: tuple[str, ...] | None
    base_identity: str
    sha256: str


@dataclass(frozen=True)
class StartedFrom:
    """Where a training started.

    ``distances`` are measured on training rows, by folder, where there was a choice; ``measure`` says what they are: the smaller,
    the nearer. The entry ``""`` is the base without an adapter. ``head`` says whether the adapter's head was kept.
    """

    folder: str
    head: bool
    measure: str
    distances: dict[str, float]

    def __str__(self) -> str:
        """As it is printed."""
        head = "" if self.head else ", with a new head"
        if not self.distances:
            return f"started from {self.folder}{head}"
        told = ", ".join(f"{folder or 'no adapter'} {value:.3f}" for folder, value in self.distances.items())
        return f"started from {self.folder}{head}, the nearest by {self.measure}: {told}"

    @property
    def warning(self) -> str | None:
        """What to say where the base by itself is nearer than all adapters."""
        if not self.distances or self.distances[self.folder] < self.distances.get("", float("inf")):
            return None
        return (
            f"by {self.measure} the base without an adapter ({self.distances['']:.3f}) is as near to these rows as the nearest "
            f"adapter, {self.folder} ({self.distances[self.folder]:.3f}); training without --from may do as well"
        )


def read_sources(folders: str | Path | Sequence[str | Path], task: Task, learning_rate: float | None) -> list[Source]:
    """The adapters to start from, before torch is imported.

    Args:
        folders: One adapter's folder, or several.
        task: What is trained.
        learning_rate: As asked for; else the method's usual one.

    Raises:
        InputError: A folder is no PEFT checkpoint in safetensors.
        UnsupportedAdapterError: A method cannot ship.
    """
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    found = []
    for folder in map(Path, given):
        if missing := [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]:
            raise InputError(
                f"{folder} cannot be started from: it has no {' and no '.join(missing)}, so it is no adapter"
            )
        config = read_object(folder / _CONFIG)
        method = str(config.get("peft_type", "")).lower()
        if not method:
            raise InputError(f"{folder / _CONFIG} does not say which method the adapter is (peft_type)")
        check_shipping(method, task, None)
        record = read_object(folder / ADAPTER_FILE, finite=False) if (folder / ADAPTER_FILE).is_file() else {}
        labels = record.get("labels")
        found.append(
            Source(
                folder,
                Settings(method, rank=int(config.get("r") or 8), learning_rate=learning_rate),
                tuple(map(str, labels)) if isinstance(labels, list) else None,
                str(record.get("base_identity") or ""),
                hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest(),
            )
        )
    if len({source.sha256 for source in found}) != len(found):
        raise InputError("--from names the same adapter twice")
    return found


def started(base: BaseModel, source: Source, labels: Sequence[str], task: Task) -> tuple[nn.Module, bool]:
    """``base.model`` with the adapter of ``source`` on it, to be trained on; it is changed in place.

    Args:
        base: The network, with its head.
        source: The adapter.
        labels: What is to be learnt; the adapter's head is kept where it was trained for the same labels in this order.
        task: What is trained.

    Returns:
        The network, and whether the head is the adapter's.

    Raises:
        InputError: The adapter is of another base, or PEFT cannot put it over this network.
    """
    import torch
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import TaskType
    from safetensors.torch import load_file

    if source.base_identity and source.base_identity != base.identity:
        raise InputError(
            f"{source.folder} was trained on another base than {base.source}: identity {source.base_identity[:12]}… and "
            f"{base.identity[:12]}…. Start from an adapter of this base"
        )
    config: Any = PeftConfig.from_pretrained(str(source.folder))
    config.inference_mode = False
    config.base_model_name_or_path = base.model.name_or_path
    config.task_type = TaskType(task)
    if base.fresh and hasattr(config, "modules_to_save"):
        config.modules_to_save = (
            sorted({*(config.modules_to_save or ()), *base.fresh} - {"classifier", "score"}) or None
        )
    model = made_over(base, config, str(source.folder))
    weights = load_file(source.folder / _WEIGHTS)
    keeps = not base.fresh or source.labels == tuple(labels)
    if not keeps:
        heads = tuple(f"base_model.model.{name}." for name in {*base.fresh, "classifier", "score"})
        own = get_peft_model_state_dict(model)
        weights = {name: value for name, value in weights.items() if not name.startswith(heads)}
        weights |= {name: value for name, value in own.items() if name.startswith(heads)}
    try:
        with torch.no_grad():
            result: Any = set_peft_model_state_dict(model, weights)
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"the adapter {source.folder} does not fit {base.source}: {error}") from error
    if unexpected := list(result.unexpected_keys):
        raise InputError(
            f"the adapter {source.folder} does not fit {base.source}: it holds {unexpected[0]}"
            f"{f' and {len(unexpected) - 1} more' if len(unexpected) > 1 else ''}, for which there is no place"
        )
    return model, keeps


def nearest(
    base: BaseModel,
    sources: Sequence[Source],
    labels: Sequence[str],
    task: Task,
    measure: Callable[[Any], float],
    what: str,
) -> tuple[Source, StartedFrom]:
    """The source that is nearest to the rows, by ``measure`` of the network with it on: the smaller, the nearer.

    ``what`` names the measure. With one source nothing is measured.
    """
    import copy

    def fresh() -> BaseModel:
        return replace(base, model=copy.deepcopy(base.model))

    if len(sources) == 1:
        return sources[0], StartedFrom(str(sources[0].folder), False, "", {})
    distances = {"": measure(fresh().model)}
    for source in sources:
        distances[str(source.folder)] = measure(started(fresh(), source, labels, task)[0])
    best = min(sources, key=lambda source: distances[str(source.folder)])
    return best, StartedFrom(str(best.folder), False, what, distances)
