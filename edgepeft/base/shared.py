"""One encoder that several tasks share: its features, and a head for each task behind it, in one graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.base_weights import renamed
from ..bundle.manifest import TaskEntry
from ..errors import CaptureError, InputError
from .head import own_head
from .identity import hash_weights
from .load import Loaded, load_model
from .samples import input_shapes

#: What a shared base is for by itself: features. Heads are parts of adapters.
FEATURES = "feature-extraction"
#: Tasks whose heads can stand behind one encoder, and what each model calls its outputs.
SHARED_TASKS: dict[str, tuple[str, ...]] = {
    FEATURES: ("last_hidden_state",),
    "text-classification": ("logits",),
    "token-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
    "image-classification": ("logits",),
    "audio-classification": ("logits",),
}


@dataclass(frozen=True)
class Shared:
    """A shared base as it was loaded: what capture takes, and its tasks."""

    loaded: Loaded
    tasks: Mapping[str, TaskEntry]


def check_shareable(tasks: Collection[str]) -> None:
    """:class:`InputError` for tasks whose heads cannot stand behind one encoder."""
    odd = sorted(set(tasks) - set(SHARED_TASKS))
    if odd:
        raise InputError(
            f"adapters are for different tasks: {', '.join(sorted(tasks))}. One base serves several of "
            f"{', '.join(SHARED_TASKS)}; {odd[0]} takes a bundle of its own"
        )


def head_prefix(task: str) -> str:
    """What stands before the names of a task's head in a shared base."""
    return f"heads.{task}."


def load_shared(source: str | Path, tasks: Sequence[str]) -> Shared:
    """Load one encoder with a head for each of ``tasks``.

    The encoder is loaded once. Each task's own model is loaded for its head, which runs on what the encoder gave. Parameters
    keep the names that they have in a task's model, behind :func:`head_prefix` where they are its head's.

    Args:
        source: A folder or a Hugging Face id.
        tasks: Tasks out of ``SHARED_TASKS``.

    Raises:
        InputError: A task cannot share, or the architecture has no model for one.
        CaptureError: The models of the tasks have different encoders.
    """
    check_shareable(tasks)
    loads = {task: load_model(source, task=task) for task in tasks}
    # The encoder of one task may have parts that another's lacks (BERT's pooler): the largest holds them all.
    features = loads.pop(FEATURES, None)
    inner = {task: _encoder(each.model) for task, each in loads.items()}
    if not inner:
        raise InputError(f"a base that serves {FEATURES} alone is captured by itself")
    sizes = {task: len(list(encoder.parameters())) for task, encoder in inner.items()}
    largest = max(sizes, key=lambda task: sizes[task])
    encoder, name = inner[largest], loads[largest].model.base_model_prefix
    names = {parameter for parameter, _ in encoder.named_parameters()}
    for task, other in inner.items():
        lacking = {parameter for parameter, _ in other.named_parameters()} - names
        if lacking:
            raise CaptureError(f"{source}: the encoder for {task} has {sorted(lacking)[0]}, that for {largest} has not")
    model = _wrapper(encoder, name, {task: each.model for task, each in loads.items()})
    entries = {FEATURES: TaskEntry(outputs={"last_hidden_state": "last_hidden_state"}, names=(("", f"{name}."),))}
    for task, each in loads.items():
        prefix = head_prefix(task)
        pairs = ((f"{name}.", f"{name}."), ("", prefix))
        head = own_head(each.model.config, task, (parameter for parameter, _ in each.model.named_parameters()))
        entries[task] = TaskEntry(
            outputs={own: f"{task}.{own}" for own in SHARED_TASKS[task]},
            names=pairs,
            fresh=tuple(sorted(renamed(parameter, pairs) for parameter in each.fresh)),
            labels=head.labels,
            problem_type=head.problem_type,
            activation=head.activation,
        )
    own = dict(model.named_parameters())
    fresh = {parameter for entry in entries.values() for parameter in entry.fresh} & set(own)
    identity = _identity(own, fresh, name, entries)
    first = features or loads[largest]
    loaded = replace(
        first,
        model=model,
        task=FEATURES,
        fresh=tuple(sorted(fresh)),
        identity=identity,
        inputs=input_shapes(loads[largest].model),
        unexpected=(),
    )
    return Shared(loaded, entries)


def _encoder(model: Any) -> Any:
    encoder = getattr(model, model.base_model_prefix, None)
    if encoder is None or encoder is model:
        raise InputError(f"{type(model).__name__} keeps no encoder apart from its head, so tasks cannot share it")
    return encoder


def _identity(own: Mapping[str, Any], fresh: Collection[str], encoder: str, tasks: Mapping[str, TaskEntry]) -> str:
    """The identity that a task's own model of this checkpoint has (:func:`.identity.identity_of_model`)."""
    weights = {}
    for name, parameter in own.items():
        if name in fresh:
            continue
        prefix = next((head_prefix(task) for task in tasks if name.startswith(head_prefix(task))), f"{encoder}.")
        weights[name.removeprefix(prefix)] = np.ascontiguousarray(parameter.detach().float().cpu().numpy())
    return hash_weights(weights.items())


def _wrapper(encoder: Any, name: str, models: Mapping[str, Any]) -> Any:
    """A model that runs ``encoder`` once and each task's head on what it gave; outputs by task."""
    import torch
    from transformers import PreTrainedModel

    given: list[Any] = []

    class Given(torch.nn.Module):
        """Stands where a task's model has its encoder."""

        def forward(self, *arguments: Any, **options: Any) -> Any:
            return given[-1]

    # The architecture's own kind of model: it knows which attention its layers can compute.
    kind: Any = [
        cls for cls in type(encoder).__mro__ if issubclass(cls, PreTrainedModel) and cls is not PreTrainedModel
    ][-1]

    class SharedEncoder(kind):  # type: ignore[misc] # a class that is found when this runs
        """The encoder and the heads behind it."""

        config_class = type(encoder.config)
        base_model_prefix = name

        def __init__(self) -> None:
            super().__init__(encoder.config)
            setattr(self, name, encoder)
            self.heads = torch.nn.ModuleDict()
            for task, model in models.items():
                setattr(model, name, Given())
                self.heads[task] = model

        def forward(self, **inputs: Any) -> dict[str, Any]:
            features = getattr(self, name)(**inputs)
            given.append(features)
            try:
                outputs = {task: head(**inputs) for task, head in self.heads.items()}
            finally:
                given.pop()
            found: dict[str, Any] = {"last_hidden_state": features[0]}
            for task, each in outputs.items():
                found[task] = {own: each[own] for own in SHARED_TASKS[task]}
            return found

    SharedEncoder.__name__ = type(encoder).__name__
    return SharedEncoder().eval()
