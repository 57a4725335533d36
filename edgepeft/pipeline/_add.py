"""``add``: an adapter into a bundle that exists, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime as runtimes
from ..adapters.bundle_weights import BundleWeights
from ..adapters.contract import check_belongs
from ..adapters.files import AdapterFile, contract_of, read_adapter_onnx, read_onnx_adapter, version_number
from ..adapters.fill import check_shape
from ..adapters.read import read_adapter
from ..bundle import AdapterEntry, Bundle, Manifest, check_name, read_bundle, replacing
from ..bundle.adapter_checks import check_labels, check_ranks
from ..bundle.names import check_distinct
from ..bundle.read import check_prefix_tensors
from ..errors import AdapterError, AdapterMismatchError, BundleError, InputError
from ..strict_json import read_object
from ..validate.probe import bundle_probe, same_outputs
from ._adapter_files import adapter_metadata, fill, write_adapter
from ._manifest import write_manifest

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Added:
    """The bundle with the adapter in it, and whether the adapter changes the base's output."""

    bundle: Bundle
    entry: AdapterEntry
    changes_output: bool


def _exported_file(path: Path) -> AdapterFile:
    """An adapter that edgepeft exported, from its ``.onnx`` or its ``.onnx_adapter`` with the ``.onnx`` beside it."""
    beside = path.with_suffix(".onnx")
    if not beside.is_file():
        raise AdapterError(
            f"{path.name} carries no contract of its own; put {beside.name}, which was exported with it, beside it"
        )
    found = read_adapter_onnx(beside)
    contract_of(found, beside)
    if path.suffix == ".onnx_adapter":
        tensors, model, slots = read_onnx_adapter(path)
        versions = (version_number(found.metadata["base_identity"]), version_number(found.metadata["slots_hash"]))
        same = tensors.keys() == found.tensors.keys() and all(
            np.array_equal(tensors[n], found.tensors[n]) for n in tensors
        )
        if (model, slots) != versions or not same:
            raise AdapterError(f"{path} and {beside.name} beside it are two different adapters")
    return found


def _from_file(bundle: Bundle, name: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"adapter {name!r}: no file at {path}")
    found = _exported_file(path)
    manifest = bundle.manifest
    for what, mine, theirs in (
        ("base identity", manifest.base.identity, found.metadata["base_identity"]),
        ("slot schema", manifest.slots.hash, found.metadata["slots_hash"]),
    ):
        if mine != theirs:
            raise AdapterMismatchError(
                f"adapter {name!r} ({path}) was exported for {what} {theirs[:16]}…, this base has {mine[:16]}…. "
                + (
                    "Add it from its PEFT checkpoint instead."
                    if what == "slot schema"
                    else "It belongs to another base."
                )
            )
    shapes = {**manifest.slots.tensors(), **manifest.prefix_tensors()}
    for tensor, array in found.tensors.items():
        if tensor not in shapes:
            raise AdapterMismatchError(f"adapter {name!r} fills {tensor}, which is not a slot of this base")
        check_shape(array.shape, shapes[tensor], f"adapter {name!r}, {tensor}")
    found_shapes = {tensor: tuple(array.shape) for tensor, array in found.tensors.items()}
    what, labels = f"adapter {name!r} ({path})", found.metadata.get("labels")
    check_prefix_tensors(what, found_shapes, found.metadata.get("prefix_length", 0), manifest)
    check_ranks(what, found_shapes, found.metadata["ranks"], manifest)
    check_labels(what, found_shapes, labels, manifest)
    return dict(found.tensors), dict(found.metadata)


def base_module(bundle: Bundle) -> Any:
    """The base as a PyTorch model, from where it was captured; it must still be the bundle's base."""
    from ..base.load import load_model

    entry = bundle.manifest.base
    loaded = load_model(entry.source, task=bundle.manifest.task, layers=entry.layers)
    if loaded.identity != entry.identity:
        raise AdapterMismatchError(
            f"lowering this adapter needs the base itself; {entry.source} now has identity {loaded.identity[:16]}…, the bundle was "
            f"made from {entry.identity[:16]}…. Export the base again with this adapter."
        )
    return loaded.model


def _from_checkpoint(
    bundle: Bundle, name: str, source: str, force: bool, announce: Announce
) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = bundle.manifest
    adapter = read_adapter(
        source,
        name=name,
        weights=BundleWeights(bundle),
        module=lambda: base_module(bundle),
        layers=manifest.base.layers,
    )
    check_belongs(adapter, identity=manifest.base.identity, source=manifest.base.source, force=force, announce=announce)
    for note in adapter.notes:
        announce(f"adapter {name}: {note}")
    config = (
        read_object(bundle.file("config.json"), error=BundleError, finite=False) if adapter.prefix is not None else {}
    )
    filled = fill(adapter, manifest.slots, manifest.base.fresh, manifest.prefix_tensors(), config, manifest.max_length)
    metadata = adapter_metadata(filled, base_identity=manifest.base.identity, slots_hash=manifest.slots.hash)
    return filled.tensors, metadata


def _changes_output(bundle: Bundle, name: str) -> bool:
    """Run the base and the adapter once: non-finite numbers are an error, equal ones a warning."""
    probe = bundle_probe(bundle)
    runtime = runtimes.open(bundle.path)
    plain = probe.run(runtime.base)
    edited = probe.run(runtime.adapter(name))
    if not all(np.isfinite(array).all() for found in edited for array in found.values()):
        raise AdapterError(f"adapter {name!r} gives NaN or infinite outputs; the bundle was left as it was")
    return not same_outputs(edited, plain)


def add(
    bundle: str | Path,
    name: str,
    source: str | Path,
    *,
    force: bool = False,
    replace: bool = False,
    announce: Announce = lambda message: None,
) -> Added:
    """Add an adapter to a bundle: a PEFT checkpoint (folder or Hugging Face id), or a file that edgepeft exported.

    The base is not touched; the manifest and the adapter's files change all at once. Without ``replace`` an adapter of
    that name is kept and :class:`InputError` raised. Raises :class:`AdapterMismatchError` for an adapter of another base
    or without slots here.
    """
    opened = read_bundle(bundle)
    manifest = opened.manifest
    try:
        check_name(name)
    except ValueError as error:
        raise InputError(f"--adapter: {error}") from error
    if manifest.mode != "swap":
        raise InputError(f"{opened.path} is merged with {manifest.merged!r} and has no slots; export with --mode swap")
    _check_free(manifest, opened.path, name, replace)
    path = Path(source)
    if path.suffix in {".onnx", ".onnx_adapter"}:
        tensors, metadata = _from_file(opened, name, path)
    else:
        tensors, metadata = _from_checkpoint(opened, name, str(source), force, announce)
    added = put_adapter(opened, name, tensors, metadata, replace=replace)
    for variant in manifest.provenance.get("calibration", {}):
        announce(
            f"{variant} was measured without {name}: look at its accuracy (validate --variant {variant} --data {name}=FILE), or "
            f"make it again (quantize --variant {variant} --replace --data …)"
        )
    return added


def _check_free(manifest: Manifest, path: Path, name: str, replace: bool) -> None:
    try:
        check_distinct((*manifest.adapters, name), "adapters")
    except ValueError as error:
        raise InputError(f"{path}: {error}; choose another name") from error
    if name in manifest.adapters and not replace:
        raise InputError(f"{path} already has an adapter {name!r}; choose another name, or replace it with --replace")


def put_adapter(
    opened: Bundle, name: str, tensors: dict[str, Any], metadata: dict[str, Any], *, replace: bool
) -> Added:
    """Write an adapter's slot tensors into a bundle, all at once, and run it once; :class:`InputError` where it exists."""
    manifest = opened.manifest
    _check_free(manifest, opened.path, name, replace)
    with replacing(opened.path, keep=True) as folder:
        entry = write_adapter(folder, name, tensors, metadata)
        adapters = {**manifest.adapters, name: entry}
        known = {n: e for n, e in manifest.files.items() if n not in {entry.onnx, entry.onnx_adapter}}
        updated = _with_adapters(manifest, adapters)
        staged = Bundle(path=folder, manifest=write_manifest(folder, updated, known))
        changes = _changes_output(staged, name)
    return Added(bundle=read_bundle(opened.path), entry=entry, changes_output=changes)


def _with_adapters(manifest: Manifest, adapters: dict[str, AdapterEntry]) -> Manifest:
    return manifest.model_copy(update={"adapters": adapters})


def remove(bundle: str | Path, name: str) -> Bundle:
    """Remove an adapter and its files from a bundle, all at once."""
    opened = read_bundle(bundle)
    entry = opened.adapter(name)
    with replacing(opened.path, keep=True) as folder:
        for file in (entry.onnx, entry.onnx_adapter):
            (folder / file).unlink(missing_ok=True)
        adapters = {n: e for n, e in opened.manifest.adapters.items() if n != name}
        known = {n: e for n, e in opened.manifest.files.items() if n not in {entry.onnx, entry.onnx_adapter}}
        write_manifest(folder, _with_adapters(opened.manifest, adapters), known)
    return read_bundle(opened.path)
