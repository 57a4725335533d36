"""``export``: from a Hugging Face model and PEFT checkpoints to a bundle that was compared with PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..adapters import Adapter, read_adapter
from ..adapters.checkpoint import read_checkpoint
from ..adapters.contract import check_belongs
from ..base.base import Base
from ..base.capture import capture
from ..base.load import load_model
from ..base.remote_code import trusting
from ..base.task import check_task
from ..bundle import LOCK_TIMEOUT, Head
from ..errors import InputError
from ._embedding import announce_base, widened
from ._export_modes import bake_each, merge_each, swap
from ._export_tasks import heads_brought, layers_asked, named_tasks, several_tasks
from ._exported import Announce, Exported, embeddings_of
from ._heads import check_names, task_in, with_head
from ._manifest import check_asked
from ._write import write_bundle


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
    peft_tasks = named_tasks(checkpoints)
    tasks = several_tasks(task, peft_tasks, mode)
    peft_task = peft_tasks[0] if peft_tasks and not tasks else None
    if mode == "bake":
        if onnx is not None:
            raise InputError("--mode bake traces PEFT's model; an ONNX file of the base (--onnx) has no place in that")
        return bake_each(
            str(model), checkpoints, out, task, None if task else peft_task, max_length, force, heads, write, announce
        )
    layers = layers_asked(checkpoints)
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
        heads=heads_brought(checkpoints),
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
    write = partial(write, embeddings=embeddings_of(base, checkpoints, announce))
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
        return merge_each(base, read, checkpoints, out, write, announce)
    return swap(base, read, checkpoints, out, slots, write, announce, Path(onnx) if onnx is not None else None)


def _module(base: Base, task: str | None) -> Any:
    """The base as PyTorch runs it, for one of its tasks."""
    return base.reference if task is None else load_model(base.source, task=task).model


def _matched(base: Base) -> str:
    """How a given file's parameters were told, in words."""
    if not base.matched:
        return ""
    told = ", ".join(f"{count} by {how}" for how, count in base.matched.items() if count)
    over = "" if base.variant == "fp32" else f" computing with the {base.variant} numbers of the file"
    return f"{over}; parameters told: {told}"
