"""``write_bundle``: graphs and adapters as a bundle folder, checked before it takes its place."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..adapters.files import write_adapter_onnx, write_onnx_adapter
from ..adapters.fill import FilledSlots, fill_slots
from ..adapters.form import Adapter, Array
from ..adapters.prefix import fill_prefix
from ..base.form import Base
from ..bundle import (
    MANIFEST_NAME,
    AdapterEntry,
    BaseEntry,
    Bundle,
    FileEntry,
    GraphInput,
    Manifest,
    SlotTable,
    Variant,
    dump_manifest,
    hash_file,
    read_bundle,
    replacing,
)
from ..bundle.manifest import prefix_tensors
from ..bundle.slots import Dim
from ..errors import InputError
from ..graph.form import MergedBase, SlottedBase
from ..quantize import count_quantized
from ._genai import NAME as GENAI_CONFIG
from ._genai import note_genai

_PACKAGES = ("edgepeft", "torch", "transformers", "peft", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Filled:
    """An adapter with the tensors it fills the slots with."""

    adapter: Adapter
    slots: FilledSlots
    #: Its states before the sequence, by tensor name.
    prefix: Mapping[str, Array] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Array]:
        """What the adapter's files hold."""
        return {**self.slots.tensors, **self.prefix}


def fill(
    adapter: Adapter, table: SlotTable, fresh: Sequence[str], prefix: Mapping[str, tuple[Dim, ...]],
    config: Mapping[str, Any], max_length: int | None,
) -> Filled:  # fmt: skip
    """``adapter`` over a base: its slots, and its states before the sequence where ``prefix`` says what the base takes."""
    slots = fill_slots(adapter, table, fresh=fresh)
    return Filled(adapter, slots, fill_prefix(adapter, prefix, config, max_length))


def adapter_metadata(filled: Filled, *, base_identity: str, slots_hash: str) -> dict[str, Any]:
    """The adapter's contract, as its ``.onnx`` file carries it; enough to add that file to another copy of the base."""
    adapter = filled.adapter
    labels = adapter.labels
    if labels is None and filled.slots.labels is not None:
        labels = tuple(f"LABEL_{i}" for i in range(filled.slots.labels))
    return {
        "method": adapter.method,
        "source": adapter.source,
        "base_identity": base_identity,
        "slots_hash": slots_hash,
        "ranks": filled.slots.ranks,
        "labels": labels,
        "scalable": adapter.scalable,
        "per_row": filled.slots.per_row and not filled.prefix,
        "prefix_length": adapter.prefix.states.shape[3] if adapter.prefix is not None else 0,
        "residual": None if adapter.exactness.exact else adapter.exactness.residual,
    }


def write_adapter(folder: Path, name: str, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> AdapterEntry:
    """Write both files of an adapter below ``folder`` (replacing old ones, never writing into them); its entry."""
    (folder / "adapters").mkdir(exist_ok=True)
    files = {"onnx_adapter": f"adapters/{name}.onnx_adapter", "onnx": f"adapters/{name}.onnx"}
    for file in files.values():
        (folder / file).unlink(missing_ok=True)
    write_onnx_adapter(
        folder / files["onnx_adapter"],
        tensors,
        base_identity=metadata["base_identity"],
        slots_hash=metadata["slots_hash"],
    )
    write_adapter_onnx(folder / files["onnx"], tensors, metadata)
    return AdapterEntry(
        **files,
        **metadata,
        tensors={tensor: tuple(array.shape) for tensor, array in tensors.items()},
        bytes=(folder / files["onnx_adapter"]).stat().st_size,
    )


def write_manifest(folder: Path, manifest: Manifest, unchanged: Mapping[str, FileEntry] | None = None) -> Manifest:
    """Hash the files of ``folder`` into ``manifest`` and write it; ``unchanged`` are hashes that still hold."""
    known = dict(unchanged or {})
    if _note_variants(folder, manifest.variants):
        known.pop("config.json", None)
    if note_genai(folder, manifest):
        known.pop(GENAI_CONFIG, None)
    manifest = manifest.model_copy(update={"files": _listed(folder, known)})
    manifest = Manifest.model_validate(manifest.model_dump())
    target = folder / MANIFEST_NAME
    target.unlink(missing_ok=True)
    target.write_text(dump_manifest(manifest), encoding="utf-8")
    return manifest


def _note_variants(folder: Path, variants: Mapping[str, Variant]) -> bool:
    """Say in ``config.json`` what transformers.js needs to open the base; whether the file was changed.

    It fetches ``<graph>_data`` for exactly the graphs named here, and opens ``dtype`` where its caller asks for none.
    """
    path = folder / "config.json"
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    dtype = next((name for name in ("int8", "q4", "fp32") if name in variants), next(iter(variants)))
    weights = {Path(variant.file).name: len(variant.data) for variant in variants.values()}
    config["transformers.js_config"] = {"dtype": dtype, "use_external_data_format": weights}
    written = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if written == text:
        return False
    path.unlink()
    path.write_text(written, encoding="utf-8")
    return True


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


def _model_files(folder: Path, base: Base, labels: Sequence[str] | None) -> None:
    config = json.loads(json.dumps(dict(base.config), default=str))
    if labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name, path in base.files.items():
        shutil.copyfile(path, folder / name)


def check_target_folder(target: Path) -> None:
    """Refuse to replace a folder that is not a bundle."""
    if target.exists() and not (target / MANIFEST_NAME).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not a bundle; choose another --out or remove it")


def write_bundle(
    target: str | Path,
    base: Base,
    content: SlottedBase | MergedBase,
    adapters: Sequence[Adapter] = (),
    *,
    recipe: Mapping[str, Any] | None = None,
    check: Callable[[Bundle], None] = lambda bundle: None,
) -> Bundle:
    """Write a bundle to a temporary sibling of ``target``, ``check`` it there, and put it in ``target``'s place.

    ``content`` is the base with slots, which ``adapters`` fill, or the base merged with one adapter. ``recipe`` goes into
    the manifest's provenance. Where anything raises, ``check`` included, an old bundle at ``target`` stays as it was.
    Raises :class:`InputError` where ``target`` is another kind of folder and :class:`AdapterMismatchError` where an
    adapter does not fit the slots.
    """
    target = Path(target)
    check_target_folder(target)
    if isinstance(content, MergedBase):
        if adapters:
            raise InputError("a merged base has no slots for further adapters")
        table, merged = SlotTable(), content.adapter
        baked = content.baked
        labels = merged.labels or base.labels if baked else merged_labels(base, merged)
    else:
        table, merged, baked = content.table, None, False
        labels = base.labels
    graph = content.graph
    inputs = _io(graph.graph.inputs, table)
    before = prefix_tensors(inputs)
    filled = [fill(adapter, table, base.fresh, before, base.config, base.max_length) for adapter in adapters]
    with replacing(target, keep=False) as folder:
        _model_files(folder, base, labels)
        (folder / "onnx").mkdir()
        whole = "model" if base.variant == "fp32" else f"model_{base.variant}"
        names = [whole] if content.decoder is None else ["encoder_model", "decoder_with_past_model"]
        for name, part in zip(names, (graph, content.decoder), strict=False):
            assert part is not None
            ir.save(part, folder / "onnx" / f"{name}.onnx", external_data=f"{name}.onnx_data")
        base.forget()
        data = tuple(sorted(f"onnx/{p.name}" for p in (folder / "onnx").iterdir() if p.suffix == ".onnx_data"))
        entries = {
            each.adapter.name: write_adapter(
                folder,
                each.adapter.name,
                each.tensors,
                adapter_metadata(each, base_identity=base.identity, slots_hash=table.hash),
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
            outputs=_io(graph.graph.outputs, table),
            labels=labels,
            max_length=base.max_length,
            slots=table,
            variants={
                base.variant: Variant(
                    file=f"onnx/{names[0]}.onnx",
                    decoder_file=None if content.decoder is None else f"onnx/{names[1]}.onnx",
                    data=data,
                    slots="overridable" if merged is None else "none",
                    recipe="fp32" if base.variant == "fp32" else "as it was given",
                    quantized_share=round(count_quantized(graph, table).share, 6),
                )
            },
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
        check(Bundle(path=folder, manifest=manifest))
    return read_bundle(target)


def _listed(folder: Path, known: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """The deployed files below ``folder``, hashed where ``known`` has no entry.

    Reports say what was measured of a bundle; they are not part of what is deployed and may be written any time.
    """
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME and path.relative_to(folder).parts[0] != "report"
    }
    return {name: known.get(name) or hash_file(path) for name, path in files.items()}


def merged_labels(base: Base, adapter: Adapter) -> tuple[str, ...] | None:
    """The labels of a base merged with ``adapter``: the adapter's own, else as many as its head has."""
    if base.labels is None or adapter.labels is not None:
        return adapter.labels or base.labels
    sizes = {o.tensor.shape[0] for n, o in adapter.overrides.items() if o.tensor.shape != base.weights[n].shape}
    return tuple(f"LABEL_{i}" for i in range(sizes.pop())) if sizes else base.labels
