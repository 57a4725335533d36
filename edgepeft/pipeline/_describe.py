"""``describe``: how an adapter will ship, by itself or over its base."""

from __future__ import annotations

from pathlib import Path

from ..adapters.base_weights import HeldWeights
from ..adapters.checkpoint import Checkpoint, Source, read_checkpoint
from ..adapters.describe import AdapterPlan, describe_adapter
from ..adapters.layout import as_linear
from ..adapters.read import layers_of
from ..bundle import MANIFEST_NAME, read_bundle, rereading


def describe(source: Source, base: str | Path | None = None, *, max_rank: int | None = None) -> AdapterPlan:
    """Say how a PEFT checkpoint will ship.

    Args:
        source: The checkpoint: a folder or a Hugging Face id.
        base: The model that it was trained over (a folder or a Hugging Face id), or a bundle of it. The adapter is then lowered,
            and the plan says what came out. A bundle needs no torch, where the method has a closed form.
        max_rank: The largest rank that an SVD may choose.

    Returns:
        The way it ships, its sites, and its size in bytes.

    Raises:
        AdapterError: The checkpoint cannot be read, or does not fit the base.

    Example:
        >>> describe("./reviews-lora").mode
        'swap'
    """
    checkpoint = read_checkpoint(source)
    if base is None:
        return describe_adapter(checkpoint, max_rank=max_rank)
    if (Path(base) / MANIFEST_NAME).is_file():
        return _over_bundle(base, checkpoint, max_rank)
    from ..base.load import load_model
    from ..base.markers import parameters_of

    loaded = load_model(base, peft_task=checkpoint.config.get("task_type"), layers=layers_of(checkpoint))
    weights = HeldWeights(as_linear(loaded.model, parameters_of(loaded.model)))
    return describe_adapter(
        checkpoint, weights=weights, module=lambda: loaded.model, max_rank=max_rank, layers=loaded.layers
    )


@rereading
def _over_bundle(base: str | Path, checkpoint: Checkpoint, max_rank: int | None) -> AdapterPlan:
    from ..adapters.bundle_weights import BundleWeights
    from ._add import base_module

    bundle = read_bundle(base)
    return describe_adapter(
        checkpoint,
        weights=BundleWeights(bundle),
        module=lambda: base_module(bundle),
        max_rank=max_rank,
        layers=bundle.manifest.base.layers,
    )
