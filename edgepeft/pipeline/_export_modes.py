"""The three modes of an export: adapters beside the base, folded into it, or traced with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from ..adapters import Adapter
from ..adapters.checkpoint import Checkpoint
from ..adapters.contract import check_belongs
from ..adapters.read import opaque_adapter
from ..base.base import Base
from ..bundle import Bundle, Head
from ..graph.edit_base import add_slots, merge
from ..graph.editable import MergedBase
from ..graph.merge import merged_weight
from ..quantize.merge_error import all_ways, lost_by_rounding
from ..validate.parity import check_parity
from ..validate.quantized_base import check_given
from ..validate.result import AdapterParity
from ._exported import Announce, Exported, Write, announce_parity, checkpoint_hashes, embeddings_of
from ._heads import say_labels, with_head


def swap(
    base: Base,
    read: list[Adapter],
    checkpoints: Mapping[str, Checkpoint],
    out: Path,
    reserve: Literal["adapters", "all-linear"],
    write: Write,
    announce: Announce,
    given: Path | None,
) -> Exported:
    slotted = add_slots(base, read, reserve=reserve)
    parity: list[AdapterParity] = []

    def check(bundle: Bundle) -> None:
        if checkpoints:
            announce("comparing every adapter with PEFT")
        if given is not None and base.variant != "fp32":
            check_given(bundle, given)
        parity.extend(
            check_parity(
                bundle,
                checkpoints,
                base.source,
                module=None if base.tasks else base.reference,
                settle=base.forget,
            )
        )

    bundle = write(
        out,
        base,
        slotted,
        read,
        recipe={"slots": reserve, "added_nodes": slotted.added_nodes, "checkpoints": checkpoint_hashes(read)},
        check=check,
    )
    for adapter in read:
        entry = bundle.manifest.adapters[adapter.name]
        say_labels(adapter.name, adapter.labels is not None, entry, base.head_for(adapter.task), announce)
    announce_parity(parity, announce)
    return Exported(bundles=(bundle,), parity=tuple(parity), capture_parity=base.parity)


def merge_each(
    base: Base, read: list[Adapter], checkpoints: Mapping[str, Checkpoint], out: Path, write: Write, announce: Announce
) -> Exported:
    bundles: list[Bundle] = []
    parity: list[AdapterParity] = []
    for adapter in read:
        merged = merge(base, adapter)
        recipe = {
            "checkpoints": checkpoint_hashes([adapter]),
            "merge_error": lost_by_rounding(_merged_weights(base, adapter), all_ways()),
        }

        def check(bundle: Bundle, adapter: Adapter = adapter) -> None:
            checked = {adapter.name: checkpoints[adapter.name]}
            parity.extend(check_parity(bundle, checked, base.source, module=base.reference, settle=base.forget))

        target = out if len(read) == 1 else out / adapter.name
        bundles.append(write(target, base, merged, recipe=recipe, check=check))
    announce_parity(parity, announce)
    return Exported(bundles=tuple(bundles), parity=tuple(parity), capture_parity=base.parity)


def _merged_weights(base: Base, adapter: Adapter) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Linear weights before and after ``adapter`` is merged into them."""
    for site, edit in adapter.sites.items():
        weight = base.weights[f"{site}.weight"]
        if weight.ndim == 2:
            embedding = edit.low_rank is not None and edit.low_rank.a.shape[0] != weight.shape[1]
            yield weight, merged_weight(weight, edit, embedding=embedding)
    for name, override in adapter.overrides.items():
        weight = base.weights[name]
        if weight.ndim == 2 and weight.shape == override.tensor.shape:
            yield weight, override.tensor


def bake_each(
    model: str,
    checkpoints: Mapping[str, Checkpoint],
    out: Path,
    task: str | None,
    peft_task: str | None,
    max_length: int | None,
    force: bool,
    heads: Mapping[str, Head],
    write: Write,
    announce: Announce,
) -> Exported:
    from ..base.bake.bake import bake

    bundles: list[Bundle] = []
    parity: list[AdapterParity] = []
    captured = 0.0
    for name, checkpoint in checkpoints.items():
        adapter = opaque_adapter(checkpoint, name=name)
        announce(f"tracing {model} with {name} ({adapter.method})")
        base = bake(model, checkpoint, task=task, peft_task=peft_task, max_length=max_length, announce=announce)
        captured = max(captured, base.parity)
        check_belongs(adapter, identity=base.identity, source=base.source, force=force, announce=announce)
        adapter = with_head(adapter, checkpoint, heads.get(name), base.own_head, announce)

        def check(bundle: Bundle, base: Base = base, name: str = name, checkpoint: Checkpoint = checkpoint) -> None:
            parity.extend(check_parity(bundle, {name: checkpoint}, model, module=base.reference))

        content = MergedBase(graph=base.graph, adapter=adapter, baked=True)
        target = out if len(checkpoints) == 1 else out / name
        own = embeddings_of(base, {name: checkpoint}, announce)
        bundles.append(
            write(
                target, base, content, embeddings=own, recipe={"checkpoints": checkpoint_hashes([adapter])}, check=check
            )
        )
    announce_parity(parity, announce)
    return Exported(bundles=tuple(bundles), parity=tuple(parity), capture_parity=captured)
