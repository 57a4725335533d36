"""``add``: an adapter into a bundle that exists, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.base_weights import BaseWeights, RenamedWeights
from ..adapters.bundle_weights import BundleWeights
from ..adapters.checkpoint import read_checkpoint
from ..adapters.contract import check_belongs
from ..adapters.files import AdapterFile, contract_of, read_adapter_onnx, read_onnx_adapter, version_number
from ..adapters.fill import check_shape
from ..adapters.folder_text import FolderText
from ..adapters.read import read_adapter
from ..adapters.text_contract import text_changes
from ..base.task import check_task
from ..bundle import LOCK_TIMEOUT, AdapterEntry, Bundle, Head, Manifest, check_name, read_bundle, rereading
from ..bundle.adapter_checks import check_labels, check_ranks
from ..bundle.manifest_heads import base_head
from ..bundle.names import check_distinct
from ..bundle.read import check_prefix_tensors
from ..errors import AdapterError, AdapterMismatchError, InputError
from ._adapter_files import adapter_metadata, fill, required, write_adapter
from ._calibrate import measured_without
from ._dry_run import drop_if, kept_unless
from ._edit import Edit, edit
from ._embedding import contract, hidden_of, read_embedding
from ._heads import said, say_labels, task_in, with_head
from ._stored_adapters import Wanted, store
from ._text import bundle_text, embedding_rows, text_beside
from ._try_adapter import changes_output

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Added:
    """The bundle with the adapter in it, and whether the adapter changes the base's output.

    After a dry run the bundle is as it was, and the entry says what the adapter's would be.
    """

    bundle: Bundle
    entry: AdapterEntry
    changes_output: bool
    #: The adapter's files with their sizes in bytes.
    files: Mapping[str, int] = field(default_factory=dict)


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


def _from_file(
    bundle: Bundle, name: str, path: Path, head: Head | None
) -> tuple[dict[str, Any], dict[str, Any], FolderText]:
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
    metadata = {**found.metadata, **said(head or Head())}
    what, labels = f"adapter {name!r} ({path})", metadata.get("labels")
    check_prefix_tensors(what, found_shapes, found.metadata.get("prefix_length", 0), manifest)
    check_ranks(what, found_shapes, found.metadata["ranks"], manifest)
    check_labels(what, found_shapes, labels, manifest)
    own = text_beside(path, metadata.pop("text", None) or {})
    return dict(found.tensors), metadata, own


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
    bundle: Bundle, name: str, source: str, force: bool, head: Head | None, announce: Announce
) -> tuple[dict[str, Any], dict[str, Any], FolderText]:
    manifest = bundle.manifest
    checkpoint = read_checkpoint(source)
    check_task(name, source, checkpoint.config.get("task_type"), [manifest.task, *manifest.tasks], str(bundle.path))
    task = task_in(manifest.tasks, checkpoint, name)
    weights: BaseWeights = BundleWeights(bundle)
    if task is not None:
        weights = RenamedWeights(weights, manifest.tasks[task].names)
    adapter = read_adapter(
        checkpoint,
        name=name,
        weights=weights,
        module=None if task is not None else lambda: base_module(bundle),
        layers=manifest.base.layers,
    )
    check_belongs(adapter, identity=manifest.base.identity, source=manifest.base.source, force=force, announce=announce)
    for note in adapter.notes:
        announce(f"adapter {name}: {note}")
    if task is not None:
        adapter = adapter.over(task, manifest.tasks[task].names)
    base = base_head(manifest, task)
    adapter = with_head(adapter, checkpoint, head, base, announce)
    config = bundle.read_json("config.json") if adapter.prefix is not None else {}
    filled = fill(
        adapter,
        manifest.slots,
        required(manifest.tasks, adapter, manifest.base.fresh),
        manifest.prefix_tensors(),
        config,
        manifest.max_length,
    )
    metadata = adapter_metadata(
        filled, base_identity=manifest.base.identity, slots_hash=manifest.slots.hash, base=base, table=manifest.slots
    )
    hidden = hidden_of(manifest)
    tokenizer = {"tokenizer.json": bundle.read("tokenizer.json")} if "tokenizer.json" in manifest.files else {}
    task = adapter.task or manifest.task
    modules = read_embedding(name, checkpoint, task, tokenizer, manifest.max_length, announce)
    if modules is not None and hidden is not None:
        metadata["embedding"] = contract(modules, hidden)
    return filled.tensors, metadata, adapter.text


def add(
    bundle: str | Path,
    name: str,
    source: str | Path,
    *,
    force: bool = False,
    replace: bool = False,
    head: Head | None = None,
    form: Wanted = "fp32",
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> Added:
    """Add an adapter to a bundle.

    The base is not touched. The manifest and the adapter's files change all at once, or not at all.

    Args:
        bundle: The bundle's folder.
        name: What the adapter is called in the bundle.
        source: A PEFT checkpoint (a folder or a Hugging Face id), or a file that edgepeft exported.
        force: Accept a foreign checkpoint that names another base, where that has the same weights. A checkpoint with a
            recorded identity must match all the same.
        replace: Replace an adapter of that name.
        head: What its outputs mean: names of its labels, problem type, activation. What is not said is taken from its folder,
            else from the base's config.
        form: How its tensors are stored, as :func:`store_adapters` takes it.
        dry_run: Do all of it, checks included, and leave the bundle as it was.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.

    Returns:
        The bundle with the adapter, and whether the adapter changes the base's output.

    Raises:
        InputError: The name cannot be used, or an adapter has it and ``replace`` is false.
        AdapterMismatchError: The adapter was made for another base, or has no slots here.
        AdapterError: The checkpoint cannot be read, or gives outputs that are not finite.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> add("bundle", "topics", "./topics-lora").changes_output
        True
    """
    opened, tensors, metadata, own = _read(bundle, name, source, force, replace, head, announce)
    with kept_unless(dry_run), edit(bundle, lock_timeout=lock_timeout) as change:
        change.refuse_another_base(opened.manifest, f"adapter {name!r} was being read")
        # Of the bundle as it is now: while the adapter was read, another may have been exported in its place.
        now = change.before
        text = text_changes(bundle_text(now), own, embedding_rows(now.read_json("config.json")), name)
        for note in text.notes:
            announce(f"adapter {name}: {note}")
        entry, changes = put_adapter(change, name, tensors, metadata, text.files, replace=replace)
        if form != "fp32":
            store(change, name, form, announce)
            entry = change.manifest.adapters[name]
        sizes = {file: change.after.manifest.files[file].bytes for file in entry.files()}
        drop_if(dry_run)
    say_labels(
        name, head is not None and head.labels is not None, entry, base_head(opened.manifest, entry.task), announce
    )
    after = change.before if dry_run else change.after
    added = Added(bundle=after, entry=entry, changes_output=changes, files=sizes)
    for variant in added.bundle.manifest.provenance.get("calibration", {}):
        announce(measured_without(variant, name))
    return added


@rereading
def _read(
    bundle: str | Path, name: str, source: str | Path, force: bool, replace: bool, head: Head | None, announce: Announce
) -> tuple[Bundle, dict[str, Any], dict[str, Any], FolderText]:
    """The adapter's slot tensors, contract and text over the bundle as it is now; nobody is kept out meanwhile."""
    opened = read_bundle(bundle)
    try:
        check_name(name)
    except ValueError as error:
        raise InputError(f"--adapter: {error}") from error
    if opened.manifest.mode != "swap":
        raise InputError(
            f"{opened.path} is merged with {opened.manifest.merged!r} and has no slots; export with --mode swap"
        )
    _check_free(opened.manifest, opened.path, name, replace)
    path = Path(source)
    if path.suffix in {".onnx", ".onnx_adapter"}:
        return opened, *_from_file(opened, name, path, head)
    return opened, *_from_checkpoint(opened, name, str(source), force, head, announce)


def _check_free(manifest: Manifest, path: Path, name: str, replace: bool) -> None:
    try:
        check_distinct((*manifest.adapters, name), "adapters")
    except ValueError as error:
        raise InputError(f"{path}: {error}; choose another name") from error
    if name in manifest.adapters and not replace:
        raise InputError(f"{path} already has an adapter {name!r}; choose another name, or replace it with --replace")


def put_adapter(
    change: Edit,
    name: str,
    tensors: dict[str, Any],
    metadata: dict[str, Any],
    text: Mapping[str, str],
    *,
    replace: bool,
) -> tuple[AdapterEntry, bool]:
    """Stage an adapter's tensors and text in a change of a bundle, and run it once: its entry, and whether it changes outputs.

    Raises :class:`InputError` where the bundle has an adapter of that name by now and ``replace`` is not set.
    """
    _check_free(change.manifest, change.before.path, name, replace)
    if name in change.manifest.adapters:
        others = {file for n, e in change.manifest.adapters.items() if n != name for file in e.files()}
        change.drop(set(change.manifest.adapters[name].files()) - others)
    entry = write_adapter(change.folder, name, tensors, metadata, text)
    adapters = {**change.manifest.adapters, name: entry}
    staged = change.stage(written=entry.files(), adapters=adapters)
    return entry, changes_output(staged, name, change.before)
