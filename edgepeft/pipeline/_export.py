"""``export``: from a Hugging Face model and PEFT checkpoints to a bundle that was compared with PEFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..adapters import Adapter, read_adapter
from ..adapters.checkpoint import Checkpoint, read_checkpoint
from ..adapters.contract import check_belongs
from ..adapters.read import layers_of, method_of, opaque_adapter, task_ids
from ..base.base import Base
from ..base.capture import capture
from ..base.load import load_model
from ..base.remote_code import trusting
from ..base.replicate import LayerMap
from ..base.shared import check_shareable
from ..base.task import check_task, task_of
from ..bundle import LOCK_TIMEOUT, Bundle, Head
from ..embedding.modules import EmbeddingModules
from ..errors import InputError
from ..graph.edit_base import add_slots, merge
from ..graph.editable import MergedBase
from ..graph.merge import merged_weight
from ..quantize.merge_error import all_ways, lost_by_rounding
from ..validate.parity import check_parity
from ..validate.quantized_base import check_given
from ..validate.result import AdapterParity
from ._embedding import announce_base, read_embedding, widened
from ._heads import check_names, say_labels, task_in, with_head
from ._manifest import check_asked
from ._write import write_bundle

Announce = Callable[[str], None]
#: :func:`write_bundle` with what all bundles of one export share.
Write = Callable[..., Bundle]


@dataclass(frozen=True)
class Exported:
    """The bundles that were written (merge writes one an adapter) and each adapter's difference from PEFT."""

    bundles: tuple[Bundle, ...]
    parity: tuple[AdapterParity, ...]
    capture_parity: float


def _peft_tasks(checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """The task types that the checkpoints name; a method that nobody knows is an error."""
    for checkpoint in checkpoints.values():
        task_ids(checkpoint, method_of(checkpoint).tasks)
    types = {name: checkpoint.config.get("task_type") for name, checkpoint in checkpoints.items()}
    named = list(dict.fromkeys(value for value in types.values() if value))
    unnamed = [name for name, value in types.items() if not value]
    if len(named) > 1 and unnamed:
        raise InputError(
            f"adapters are for different tasks ({', '.join(named)}), and {unnamed[0]!r} does not say for which: put task_type "
            "into its adapter_config.json, or export it apart with --task"
        )
    return named


def _tasks(task: str | None, peft_tasks: Sequence[str], mode: str) -> tuple[str, ...]:
    """The tasks of a base that is to serve several; empty for one."""
    asked = tuple(dict.fromkeys(each.strip() for each in task.split(","))) if task and "," in task else ()
    found = asked or (() if task else tuple(filter(None, map(task_of, peft_tasks))))
    if len(found) < 2:
        return ()
    check_shareable(found)
    if mode != "swap":
        raise InputError(
            f"adapters are for different tasks: {', '.join(found)}; --mode {mode} folds each into a base of its own task. "
            "Export those of each task apart"
        )
    return found


def _layers(checkpoints: Mapping[str, Checkpoint]) -> LayerMap:
    """The one ``layer_replication`` that the checkpoints name; several are an error."""
    maps = {name: layers_of(checkpoint) for name, checkpoint in checkpoints.items()}
    if len(set(maps.values())) > 1:
        said = ", ".join(f"{name}: {[list(pair) for pair in layers] or 'none'}" for name, layers in maps.items())
        raise InputError(
            f"adapters ask for different bases (layer_replication of {said}); one bundle has one base. Export them apart"
        )
    return next(iter(maps.values()), ())


def export(
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    mode: Literal["swap", "merge", "bake"] = "swap",
    task: str | None = None,
    slots: Literal["adapters", "all-linear"] = "adapters",
    onnx: str | Path | None = None,
    force: bool = False,
    max_rank: int | None = None,
    max_length: int | None = None,
    heads: Mapping[str, Head] | None = None,
    pad_token: str | int | None = None,
    trust_remote_code: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
) -> Exported:
    """Export a base and its adapters. Each adapter is compared with PEFT before anything takes its place at ``out``.

    Args:
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get: folders or Hugging Face ids.
        out: The bundle's folder.
        mode: ``"swap"`` writes one bundle with every adapter beside the base. ``"merge"`` folds one adapter into the base, and
            with several writes ``out/<name>`` for each. ``"bake"`` does so with the model as PEFT runs it, unmerged.
        task: The task, as Hugging Face names it; by default what the checkpoints say. Several, with commas between them or as the
            checkpoints name them, make one base of features with a head for each.
        slots: ``"all-linear"`` adds slots at every linear site, for adapters to come.
        onnx: An ONNX file of the same base that was exported elsewhere.
        force: Accept a foreign checkpoint that names another base, where that has the same weights. A checkpoint with a
            recorded identity must match all the same.
        max_rank: The largest rank that an SVD may choose, for methods without a closed form.
        max_length: The longest context of a language model in tokens.
        heads: What the outputs of adapters mean, by adapter: names of labels, problem type, activation. What is not said is
            taken from the adapter's folder (edgepeft's record, a config.json or label file), else from the base's config.
        pad_token: Of a classifier over a decoder that names none: its padding token, by text or number. By default what its
            tokenizer says, else an adapter's.
        trust_remote_code: Run Python code that comes with the base. Without, such a base is refused.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.

    Returns:
        The bundles, and each adapter's largest difference from PEFT.

    Raises:
        ParityError: An adapter does not give PEFT's outputs.
        UnsupportedAdapterError: An adapter can only be merged or baked, or not shipped at all.
        InputError: A name, a path or an option is wrong.
        CaptureError: The base could not be captured.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> done = export("org/model", {"reviews": "./reviews-lora"}, "bundle")
        >>> done.bundles[0].manifest.adapters.keys()
        dict_keys(['reviews'])
    """
    with trusting(trust_remote_code):
        return _export(
            model,
            adapters,
            Path(out),
            mode,
            task,
            slots,
            onnx,
            force,
            max_rank,
            max_length,
            heads,
            pad_token,
            lock_timeout,
            announce,
        )


def _export(
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: Path,
    mode: Literal["swap", "merge", "bake"],
    task: str | None,
    slots: Literal["adapters", "all-linear"],
    onnx: str | Path | None,
    force: bool,
    max_rank: int | None,
    max_length: int | None,
    heads: Mapping[str, Head] | None,
    pad_token: str | int | None,
    lock_timeout: float,
    announce: Announce,
) -> Exported:
    write = partial(write_bundle, lock_timeout=lock_timeout, announce=announce)
    check_asked(adapters, mode, out)
    heads = dict(heads or {})
    check_names(heads, adapters)
    checkpoints = {name: read_checkpoint(source) for name, source in adapters.items()}
    peft_tasks = _peft_tasks(checkpoints)
    tasks = _tasks(task, peft_tasks, mode)
    peft_task = peft_tasks[0] if peft_tasks and not tasks else None
    if mode == "bake":
        if onnx is not None:
            raise InputError("--mode bake traces PEFT's model; an ONNX file of the base (--onnx) has no place in that")
        return _bake(
            str(model), checkpoints, out, task, None if task else peft_task, max_length, force, heads, write, announce
        )
    layers = _layers(checkpoints)
    announce(f"capturing {model}")
    if layers:
        announce(f"with layers {[list(pair) for pair in layers]} behind each other, each with weights of its own")
    base = capture(
        model,
        task=task,
        peft_task=None if task else peft_task,
        onnx=onnx,
        max_length=max_length,
        layers=layers,
        heads=_heads_brought(checkpoints),
        tasks=tasks,
        pad_token=pad_token,
        texts={f"adapter {name}": checkpoint.text for name, checkpoint in checkpoints.items()},
        announce=announce,
    )
    for name, checkpoint in checkpoints.items():
        check_task(name, checkpoint.source, checkpoint.config.get("task_type"), [base.task, *tasks], "this base")
    announce(f"captured {base.architecture} ({base.captured_by}), {base.parity:.1e} from PyTorch{_matched(base)}")
    announce_base(base.embedding, announce)
    if max_length is None:
        base = widened(base, checkpoints)
    write = partial(write, embeddings=_embeddings(base, checkpoints, announce))
    read: list[Adapter] = []
    for name, checkpoint in checkpoints.items():
        own = task_in(base.tasks, checkpoint, name)
        adapter = read_adapter(
            checkpoint,
            name=name,
            weights=base.weight_for(own),
            module=partial(_module, base, own),
            mode=mode,
            max_rank=max_rank,
            layers=base.layers,
        )
        check_belongs(adapter, identity=base.identity, source=base.source, force=force, announce=announce)
        for note in adapter.notes:
            announce(f"adapter {name}: {note}")
        if own is not None:
            adapter = adapter.over(own, base.tasks[own].names)
        read.append(with_head(adapter, checkpoint, heads.get(name), base.head_for(own), announce))
    if mode == "merge":
        return _merge(base, read, checkpoints, out, write, announce)
    return _swap(base, read, checkpoints, out, slots, write, announce, Path(onnx) if onnx is not None else None)


def _embeddings(base: Base, checkpoints: Mapping[str, Checkpoint], announce: Announce) -> dict[str, EmbeddingModules]:
    """How adapters embed texts, those whose folders say so."""
    found = {}
    for name, checkpoint in checkpoints.items():
        task = task_of(checkpoint.config.get("task_type")) or base.task
        modules = read_embedding(name, checkpoint, task, base.files, base.max_length, announce)
        if modules is not None:
            found[name] = modules
    return found


def _module(base: Base, task: str | None) -> Any:
    """The base as PyTorch runs it, for one of its tasks."""
    return base.reference if task is None else load_model(base.source, task=task).model


def _heads_brought(checkpoints: Mapping[str, Checkpoint]) -> set[str]:
    """Parameters of heads in checkpoints that name no task."""
    names = {name for each in checkpoints.values() if not each.config.get("task_type") for name in each.tensors}
    return {name for name in names if name.split(".")[0] in {"classifier", "score", "classification_head"}}


def _matched(base: Base) -> str:
    """How a given file's parameters were told, in words."""
    if not base.matched:
        return ""
    told = ", ".join(f"{count} by {how}" for how, count in base.matched.items() if count)
    over = "" if base.variant == "fp32" else f" computing with the {base.variant} numbers of the file"
    return f"{over}; parameters told: {told}"


def _swap(
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


def checkpoint_hashes(read: list[Adapter]) -> dict[str, str]:
    """sha256 of each checkpoint's weights: which training run a bundle holds."""
    return {adapter.name: adapter.checkpoint_sha256 for adapter in read}


def _merge(
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


def _bake(
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
        own = _embeddings(base, {name: checkpoint}, announce)
        bundles.append(
            write(
                target, base, content, embeddings=own, recipe={"checkpoints": checkpoint_hashes([adapter])}, check=check
            )
        )
    announce_parity(parity, announce)
    return Exported(bundles=tuple(bundles), parity=tuple(parity), capture_parity=captured)


def announce_parity(parity: list[AdapterParity], announce: Announce) -> None:
    """Say how far each adapter is from PEFT, and which changes nothing."""
    for result in parity:
        why = f", allowed {result.allowed:.1e}: {result.noise}" if result.noise else ""
        announce(f"adapter {result.adapter}: {result.max_difference:.1e} from PEFT{why}")
        if not result.changes_output:
            announce(
                f"adapter {result.adapter}: WARNING, it changes nothing (its B matrices are zero: was it trained?)"
            )
