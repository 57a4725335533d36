"""``export --variant``: straight to the variants that are asked for, block by block where the base can be read so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from ..adapters.checkpoint import Checkpoint, read_checkpoint
from ..adapters.contract import check_belongs
from ..adapters.edits import Adapter
from ..adapters.read import layers_of, read_adapter
from ..base.base import Base
from ..base.capture import announce_gaps, base_of, capped
from ..base.load import load_model
from ..base.remote_code import trusting
from ..base.streamed.graph import build_in_place
from ..base.streamed.load import LoadedInPlace, NotStreamedError, load_in_place
from ..base.streamed.memory import give_back
from ..base.task import check_task, task_of
from ..bundle import LOCK_TIMEOUT, Bundle, SlotTable, Variant, replacing, scratch
from ..errors import BundleError, CaptureError, InputError
from ..graph.deferred import Deferred
from ..graph.edit_base import add_slots
from ..graph.editable import SlottedBase
from ..quantize import RECIPES
from ..quantize.counts import count_quantized
from ..quantize.recipes import WHOLE, Recipe
from ..validate.result import AdapterParity
from ..validate.streamed import Rounding, StreamedBase, check_streamed, why_not
from ._export import Announce, Exported, announce_parity, checkpoint_hashes, export
from ._heads import with_head
from ._manifest import check_asked, check_target_folder
from ._plan import plan_export
from ._quantize import quantize
from ._remove import remove
from ._write import write_bundle


def data_free() -> tuple[str, ...]:
    """The variants that :func:`export_variants` makes: fp32, and those of recipes that need no data."""
    return (WHOLE, *(name for name, each in RECIPES.items() if each.in_graph is not None))


def export_variants(
    variants: Sequence[str],
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
    **options: Any,
) -> Exported:
    """Export a base and its adapters in certain precisions only. fp32 is in the bundle where it is asked for.

    A language model with safetensors files that mobius builds is read tensor by tensor: each is turned, packed and rounded as it is
    written, and PyTorch's side of the comparison runs one layer at a time. Memory then grows with the largest layer and not
    with the model, and nothing but the result is written. Any other base is exported in fp32 beside ``out`` and quantized
    there. Either way each variant has the same bytes.

    Args:
        variants: The precisions: ``"fp32"``, ``"int8"``, ``"q4"`` (rounded to nearest; what is fitted to texts is
            :func:`~edgepeft.pipeline.quantize`'s).
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get.
        out: The bundle's folder.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.
        options: Further options of :func:`edgepeft.pipeline.export`.

    Returns:
        What :func:`~edgepeft.pipeline.export` returns.

    Raises:
        InputError: A variant is unknown or needs data, or a file of the checkpoint is missing or damaged.
        ParityError: A variant does not compute what PyTorch computes with the same numbers; nothing is written.
        EdgepeftError: Whatever :func:`~edgepeft.pipeline.export` raises.

    Example:
        >>> export_variants(["q4"], "org/model", {"support": "./support-lora"}, "bundle").bundles[0].manifest.variants.keys()
        dict_keys(['q4'])
    """
    out = Path(out)
    wanted = tuple(dict.fromkeys(variants))
    other = next((name for name in wanted if name not in data_free()), None)
    if other is not None or not wanted:
        raise InputError(
            f"--variant takes {', '.join(data_free())}, found {other or 'none'}"
            + (
                f"; {other} needs texts: export without it, then `edgepeft quantize --variant {other}`"
                if other in RECIPES
                else ""
            )
        )
    if wanted == (WHOLE,):
        return export(model, adapters, out, lock_timeout=lock_timeout, announce=announce, **options)
    mode: Literal["swap", "merge", "bake"] = options.get("mode", "swap")
    check_asked(adapters, mode, out)
    with trusting(options.get("trust_remote_code", False)):
        try:
            asked = _asked(str(model), adapters, wanted, options)
            _plan(wanted, model, adapters, out, mode, announce, streamed=True)
            given = load_in_place(model, announce=announce)
            return _streamed(asked, given, out, lock_timeout, announce)
        except NotStreamedError as error:
            announce(f"{model} is held in memory: {error}")
    _plan(wanted, model, adapters, out, mode, announce, streamed=False)
    return _two_steps(wanted, model, adapters, out, lock_timeout, announce, options)


def _plan(
    variants: tuple[str, ...],
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: Path,
    mode: Literal["swap", "merge", "bake"],
    announce: Announce,
    *,
    streamed: bool,
) -> None:
    """Say what the export takes; :class:`InputError` where that is more than there is."""
    try:
        plan = plan_export(model, adapters, out, mode=mode, variants=variants, streamed=streamed)
    except InputError as error:
        announce(f"what it takes cannot be told: {error}")
        return
    announce(str(plan))
    plan.require_room(out)


@dataclass(frozen=True)
class _Asked:
    """What is asked of a streamed export."""

    source: str
    checkpoints: Mapping[str, Checkpoint]
    variants: tuple[str, ...]
    slots: Literal["adapters", "all-linear"]
    max_length: int | None
    max_rank: int | None
    force: bool


def _asked(
    source: str, adapters: Mapping[str, str | Path], variants: tuple[str, ...], options: Mapping[str, Any]
) -> _Asked:
    """The same, where a base can be streamed for it; :class:`NotStreamedError` where not."""
    if options.get("mode", "swap") != "swap":
        raise NotStreamedError(f"--mode {options['mode']} changes its weights")
    if options.get("onnx") is not None:
        raise NotStreamedError("an ONNX file of it is given")
    checkpoints = {name: read_checkpoint(each) for name, each in adapters.items()}
    tasks = {task_of(each.config.get("task_type")) for each in checkpoints.values()} - {None}
    task = options.get("task") or (_task_of_config(source) if not tasks else None)
    if (task or "text-generation") != "text-generation" or tasks - {"text-generation"} or options.get("heads"):
        raise NotStreamedError("only language models that continue texts are read block by block")
    for name, checkpoint in checkpoints.items():
        reason = "it repeats layers" if layers_of(checkpoint) else why_not(checkpoint)
        if reason is not None:
            raise NotStreamedError(f"adapter {name}: {reason}")
    return _Asked(
        source,
        checkpoints,
        variants,
        options.get("slots", "adapters"),
        options.get("max_length"),
        options.get("max_rank"),
        options.get("force", False),
    )


def _task_of_config(source: str) -> str:
    from transformers import AutoConfig

    from ..base.load import check_source
    from ..base.remote_code import trusted
    from ..base.sources import model_source
    from ..base.task import infer_task

    check_source(source)
    try:
        return infer_task(AutoConfig.from_pretrained(model_source(source), trust_remote_code=trusted()), None)
    except (OSError, ValueError, KeyError) as error:
        raise NotStreamedError("its config.json cannot be read") from error  # the other way says what is wrong with it


def _streamed(asked: _Asked, given: LoadedInPlace, out: Path, lock_timeout: float, announce: Announce) -> Exported:
    loaded = capped(given.loaded, asked.max_length, announce)
    given = replace(given, loaded=loaded)
    announce(f"reading {asked.source} block by block, for {', '.join(asked.variants)}")
    announce_gaps(loaded, announce)
    try:
        captured = build_in_place(given)
    except NotStreamedError:
        raise
    except CaptureError as error:
        raise NotStreamedError(str(error)) from error
    base = base_of(loaded, captured, "mobius")
    read: list[Adapter] = []
    for name, checkpoint in asked.checkpoints.items():
        check_task(name, checkpoint.source, checkpoint.config.get("task_type"), [base.task], "this base")
        adapter = read_adapter(
            checkpoint,
            name=name,
            weights=base.weight,
            module=lambda: load_model(asked.source, task=base.task).model,
            max_rank=asked.max_rank,
        )
        check_belongs(adapter, identity=base.identity, source=base.source, force=asked.force, announce=announce)
        for note in adapter.notes:
            announce(f"adapter {name}: {note}")
        read.append(with_head(adapter, checkpoint, None, base.own_head, announce))
    slotted = add_slots(base, read, reserve=asked.slots)
    graphs = {variant: _graph(slotted, variant) for variant in asked.variants}
    rounding = {variant: _rounding(base, slotted, graph, variant) for variant, graph in graphs.items()}
    parity: list[AdapterParity] = []
    worst: list[float] = []

    def check(bundle: Bundle) -> Mapping[str, Any]:
        found, results = check_streamed(
            bundle, asked.checkpoints, StreamedBase(given, asked.source), rounding, announce
        )
        worst.append(found)
        parity.extend(results)
        return {"capture_parity": found}

    bundle = write_bundle(
        out,
        base,
        slotted,
        read,
        recipe={"slots": asked.slots, "added_nodes": slotted.added_nodes, "checkpoints": checkpoint_hashes(read)},
        variants=partial(_write, graphs, slotted.table, announce),
        check=check,
        lock_timeout=lock_timeout,
        announce=announce,
    )
    announce(f"the base: {worst[0]:.1e} from PyTorch with the same numbers")
    announce_parity(parity, announce)
    return Exported(bundles=(bundle,), parity=tuple(parity), capture_parity=worst[0])


def _graph(slotted: SlottedBase, variant: str) -> ir.Model:
    graph = slotted.graph.clone()
    if variant != WHOLE:
        _rule(variant)(graph, slotted.table)
    return graph


def _rule(variant: str) -> Callable[[ir.Model, SlotTable], None]:
    rule = RECIPES[variant].in_graph
    assert rule is not None, f"{variant} needs data"
    return rule


def _rounding(base: Base, slotted: SlottedBase, graph: ir.Model, variant: str) -> Rounding:
    """What a recipe makes of the parameters whose numbers it has rounded in ``graph``."""
    before, after = slotted.graph.graph.initializers, graph.graph.initializers
    # Of a table the graph may hold a part only (OPT's positions), so what was rounded is told by where the numbers come from.
    rounded = {
        id(run.array)
        for name in before.keys() - after.keys()
        if isinstance(tensor := before[name].const_value, Deferred)
        for run in tensor.rows.runs
    }
    return {name: RECIPES[variant].rounded for name, array in base.weights.items() if id(array) in rounded}


def _write(graphs: Mapping[str, ir.Model], table: SlotTable, announce: Announce, folder: Path) -> dict[str, Variant]:
    """Write every variant's graph and weights below ``folder``."""
    written = {}
    for variant, graph in graphs.items():
        rule: Recipe | None = RECIPES.get(variant)
        file = "onnx/model.onnx" if rule is None else rule.graph_file("onnx/model.onnx")
        counted = count_quantized(graph, table)
        if rule is not None and counted.quantized == 0:
            raise BundleError(f"recipe {variant} quantized none of {counted.total} weights; nothing was written")
        announce(f"writing {variant}: {WHOLE if rule is None else rule.summary}")
        ir.save(graph, folder / file, external_data=f"{Path(file).name}_data")
        give_back()
        written[variant] = Variant(
            file=file,
            data=(f"{file}_data",),
            slots="overridable",
            recipe=WHOLE if rule is None else rule.summary,
            quantized_share=round(counted.share, 6),
        )
    return written


def _two_steps(
    variants: tuple[str, ...],
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: Path,
    lock_timeout: float,
    announce: Announce,
    options: Mapping[str, Any],
) -> Exported:
    """Export in fp32 beside ``out``, quantize there, and keep what is asked for."""
    single = options.get("mode", "swap") == "swap" or len(adapters) == 1
    if single:
        check_target_folder(out)
    with scratch(out) as folder:
        whole = folder / "bundle"
        exported = export(model, adapters, whole, announce=announce, **options)
        made = []
        for bundle in exported.bundles:
            for variant in variants:
                if variant != WHOLE:
                    method = "rtn" if RECIPES[variant].fitted is not None else None
                    quantize(bundle.path, variant, method=method, measure=False, announce=announce)
            if WHOLE not in variants:
                remove(bundle.path, variant=WHOLE)
            target = out / bundle.path.relative_to(whole)
            with replacing(target, keep=False, lock_timeout=lock_timeout) as staging:
                shutil.copytree(bundle.path, staging, dirs_exist_ok=True)
            made.append(target)
    from ..bundle import read_bundle

    return replace(exported, bundles=tuple(read_bundle(path) for path in made))
