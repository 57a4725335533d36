"""``write_bundle``: graphs and adapters as a bundle folder, checked before it takes its place."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..adapters.edits import Adapter
from ..base.base import Base
from ..base.lengths import rope_switch
from ..bundle import (
    LOCK_TIMEOUT,
    BaseEntry,
    Bundle,
    GraphInput,
    Head,
    Manifest,
    SlotTable,
    Variant,
    replacing,
)
from ..bundle.heads import inherited
from ..bundle.manifest import check_graphs_of_task, prefix_tensors
from ..embedding.modules import EmbeddingModules
from ..errors import InputError
from ..graph.editable import MergedBase, SlottedBase
from ..json_text import config_text
from ..quantize.counts import count_quantized
from ._adapter_files import adapter_metadata, fill, required, write_adapter
from ._embedding import contract, embeds, write_base
from ._manifest import _listed, check_target_folder, write_manifest
from ._text import put_text, write_text

_PACKAGES = ("edgepeft", "torch", "transformers", "peft", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def _io(values: Sequence[ir.Value], slots: SlotTable) -> tuple[GraphInput, ...]:
    skip = slots.tensors()
    return tuple(
        GraphInput(
            name=value.name or "",
            dtype=value.dtype.numpy().name if value.dtype is not None else "float32",
            shape=tuple(d if isinstance(d, int) else str(d.value or "?") for d in (value.shape or ())),
            optional=value.const_value is not None,
        )
        for value in values
        if value.name not in skip
    )


def _model_files(folder: Path, base: Base, head: Head) -> None:
    config = json.loads(json.dumps(dict(base.config), default=str))
    if head.labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(head.labels)}
        config["label2id"] = {label: i for i, label in enumerate(head.labels)}
    if head.problem_type is not None:
        config["problem_type"] = head.problem_type
    (folder / "config.json").write_text(config_text(config), encoding="utf-8")
    for name, content in base.files.items():
        (folder / name).write_bytes(content)


def write_bundle(
    target: str | Path,
    base: Base,
    content: SlottedBase | MergedBase,
    adapters: Sequence[Adapter] = (),
    *,
    embeddings: Mapping[str, EmbeddingModules] | None = None,
    recipe: Mapping[str, Any] | None = None,
    variants: Callable[[Path], Mapping[str, Variant]] | None = None,
    check: Callable[[Bundle], Mapping[str, Any] | None] = lambda bundle: None,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Write a bundle to a temporary sibling of ``target``, check it there, and put it in ``target``'s place.

    Where anything raises, ``check`` included, an old bundle at ``target`` stays as it was.

    Args:
        target: The bundle's folder. A bundle there is replaced.
        base: The captured base.
        content: The base with slots, which ``adapters`` fill, or the base merged with one adapter. An encoder-decoder's
            content has both graphs.
        adapters: Adapters of this base; none for a merged base.
        embeddings: How texts are embedded with an adapter (also the one that is merged), where that is not the base's way.
        recipe: What the manifest's provenance says of how the bundle was made.
        variants: Writes the graphs below a folder and says what they are; by default the content is saved as it is.
        check: Is called with the bundle before it takes its place. What it returns is added to the manifest's provenance.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each thing about text that an adapter changes.

    Returns:
        The bundle at ``target``.

    Raises:
        InputError: ``target`` is another kind of folder, the graphs do not make up the base's task, or a merged base has
            further adapters.
        AdapterMismatchError: An adapter does not fit the slots.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> slotted = add_slots(base, [adapter])
        >>> write_bundle("bundle", base, slotted, [adapter]).manifest.mode
        'swap'
    """
    target = Path(target)
    check_target_folder(target)
    if isinstance(content, MergedBase):
        if adapters:
            raise InputError("a merged base has no slots for further adapters")
        table, merged = SlotTable(), content.adapter
        baked = content.baked
        head = merged_head(base, merged, baked=baked)
    else:
        table, merged, baked = content.table, None, False
        head = base.own_head
    graph = content.graph
    inputs = _io(graph.graph.inputs, table)
    outputs = _io(graph.graph.outputs, table)
    try:
        check_graphs_of_task(
            base.task, inputs, outputs, decoder=content.decoder is not None, what=f"the content for {target}"
        )
    except ValueError as error:
        raise InputError(f"nothing was written: {error}") from error
    before = prefix_tensors(inputs)
    hidden, own = embeds(base.task, inputs, outputs), dict(embeddings or {})
    filled = [
        fill(adapter, table, required(base.tasks, adapter, base.fresh), before, base.config, base.max_length)
        for adapter in adapters
    ]
    with replacing(target, keep=False, lock_timeout=lock_timeout) as folder:
        _model_files(folder, base, head)
        changed = put_text(folder, base.config, adapters if merged is None else [merged], announce)
        if merged is not None:
            write_text(folder, changed[merged.name])
        (folder / "onnx").mkdir()
        written = _save(folder, base, content, table) if variants is None else variants(folder)
        base.forget()
        embedding = None
        if hidden is not None:
            embedding = write_base(folder, own.get(merged.name if merged else "", base.embedding), hidden)
        entries = {
            each.adapter.name: write_adapter(
                folder,
                each.adapter.name,
                each.tensors,
                adapter_metadata(
                    each,
                    base_identity=base.identity,
                    slots_hash=table.hash,
                    base=base.head_for(each.adapter.task),
                    table=table,
                )
                | (
                    {"embedding": contract(own[each.adapter.name], hidden)}
                    if hidden and each.adapter.name in own
                    else {}
                ),
                changed[each.adapter.name],
            )
            for each in filled
        }
        manifest = Manifest(
            task=base.task,
            mode="swap" if merged is None else "bake" if baked else "merge",
            base=BaseEntry(
                source=base.source,
                architecture=base.architecture,
                model_type=str(base.config.get("model_type", "")),
                captured_by=base.captured_by,
                identity=base.identity,
                parameters=base.parameters,
                fresh=base.fresh,
                layers=base.layers,
            ),
            inputs=inputs,
            outputs=outputs,
            labels=head.labels,
            problem_type=head.problem_type,
            activation=head.activation,
            tasks=dict(base.tasks),
            max_length=base.max_length,
            embedding=embedding,
            rope_switch=_rope_switch(base),
            slots=table,
            variants=dict(written),
            adapters=entries,
            merged=merged.name if merged is not None else None,
            provenance={
                "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
                "capture_parity": base.parity,
                **({"matched": dict(base.matched)} if base.matched else {}),
                **(recipe or {}),
            },
            files=_listed(folder, {}),
        )
        manifest = write_manifest(folder, manifest, manifest.files)
        found = check(Bundle(path=folder, manifest=manifest))
        if found:
            more = manifest.model_copy(update={"provenance": {**manifest.provenance, **found}})
            manifest = write_manifest(folder, more, manifest.files)
    return Bundle(path=target, manifest=manifest)


def _save(folder: Path, base: Base, content: SlottedBase | MergedBase, table: SlotTable) -> dict[str, Variant]:
    """Write a base's graphs below ``folder`` in the precision that they have."""
    whole = "model" if base.variant == "fp32" else f"model_{base.variant}"
    names = [whole] if content.decoder is None else ["encoder_model", "decoder_with_past_model"]
    for name, part in zip(names, (content.graph, content.decoder), strict=False):
        assert part is not None
        ir.save(part, folder / "onnx" / f"{name}.onnx", external_data=f"{name}.onnx_data")
    data = tuple(sorted(f"onnx/{p.name}" for p in (folder / "onnx").iterdir() if p.suffix == ".onnx_data"))
    return {
        base.variant: Variant(
            file=f"onnx/{names[0]}.onnx",
            decoder_file=None if content.decoder is None else f"onnx/{names[1]}.onnx",
            data=data,
            slots="none" if isinstance(content, MergedBase) else "overridable",
            recipe="fp32" if base.variant == "fp32" else "as it was given",
            quantized_share=round(count_quantized(content.graph, table).share, 6),
        )
    }


def _rope_switch(base: Base) -> int | None:
    """Where the base's rotary frequencies switch, if its context reaches beyond that."""
    switch = rope_switch(base.config) if base.task == "text-generation" else None
    return None if switch is None or (base.max_length or switch + 1) <= switch else switch


def merged_head(base: Base, adapter: Adapter, *, baked: bool) -> Head:
    """The head of a base merged with ``adapter``: what the adapter says, else as many labels as its head has."""
    own = Head(adapter.labels, adapter.problem_type, adapter.activation, base.task)
    if base.labels is None:
        return own
    sizes = {
        override.tensor.shape[0]
        for name, override in adapter.overrides.items()
        if not baked and override.tensor.shape != base.weights[name].shape
    }
    return inherited(own, base.own_head, sizes.pop() if sizes else None, base.weights)
