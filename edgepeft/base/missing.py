"""Weights that a base's checkpoint lacks: a head that nobody trained yet is one thing, a layer without its numbers another."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..errors import CaptureError

#: Parts of an encoder that its architecture creates for a task, which many published encoders lack.
_POOLERS = {"pooler"}
#: Parameters that only training reads: what they hold cannot change an output.
_TRAINING_ONLY = {"masked_spec_embed", "mask_token"}
#: Heads of models whose class does not say which of its parts is the base.
_HEADS = {"classifier", "score", "head", "fc", "projector", "pre_classifier", "classification_head", "qa_outputs"}
#: Names that a message spells out.
_SHOWN = 6


def some(names: Collection[str]) -> str:
    """The first few names, and how many there are where that is more."""
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, … ({len(names)} in all)"


def _stored(model: Any, names: Iterable[str]) -> set[str]:
    """Those of ``names`` that hold numbers: all but counters and position indices, which a model fills in by itself."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name for name in names if name not in own or own[name].is_floating_point()}


def untrained_heads(model: Any, task: str, missing: Collection[str]) -> set[str]:
    """Which of ``missing`` belong to a head (or pooler) that the checkpoint never had, so that an adapter brings it.

    A head is a part beside the base that lacks all of its numbers; one that lacks some of them is damaged. Models that
    generate or fill in words have no fresh heads: theirs was trained with the base.
    """
    lost = set(missing)
    wanted = {name for name in lost if name.rpartition(".")[2] in _TRAINING_ONLY}
    base = getattr(model, "base_model", model)
    for name, module in model.named_modules():
        if not name:
            continue
        last, top = name.rpartition(".")[2], "." not in name
        beside = module is not base if base is not model else last in _HEADS
        is_head = (task.endswith("-classification") or task == "question-answering") and top and beside
        if not is_head and last not in _POOLERS:
            continue
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        if own <= lost:
            wanted |= own
    return wanted


def check_missing(
    model: Any, source: str, task: str, missing: Collection[str], unexpected: Collection[str] = ()
) -> None:
    """Refuse a checkpoint that lacks numbers of the base itself, which would be zeros in the graph.

    Args:
        model: The loaded model.
        source: Folder or Hugging Face id it was loaded from.
        task: Task it was loaded for.
        missing: Names of parameters and buffers that the checkpoint does not hold; tied ones are none of them.
        unexpected: Names that the checkpoint holds and the model has no place for.

    Raises:
        CaptureError: Lists the weights, says which file lacks them and what to do.
    """
    lost = _stored(model, missing)
    lost -= untrained_heads(model, task, lost)
    if not lost:
        return
    instead = (
        f" It holds {some(unexpected)}, which the model has no place for: were they renamed?" if unexpected else ""
    )
    raise CaptureError(
        f"{weights_file(source)} does not hold {len(lost)} of the weights that {type(model).__name__} needs for {task}: "
        f"{some(lost)}.{instead} They would be zeros or noise. Save the model again with its save_pretrained() (or take the "
        "folder from its source again), with the version of transformers that the checkpoint was made with where names changed."
    )


def weights_file(source: str) -> str:
    """The file of a base's folder that its weights are listed in; the source itself where that is no folder."""
    folder = Path(source)
    for name in (
        "model.safetensors.index.json",
        "model.safetensors",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
    ):
        if (folder / name).is_file():
            return str(folder / name)
    return f"base model {source!r}"
