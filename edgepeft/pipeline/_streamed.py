"""A base that is read block by block, written straight to its variants and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from ..adapters.checkpoint import Checkpoint
from ..adapters.contract import check_belongs
from ..adapters.edits import Adapter
from ..adapters.read import read_adapter
from ..base.base import Base
from ..base.capture import announce_gaps, base_of, capped
from ..base.load import load_model
from ..base.memory import give_back
from ..base.streamed.graph import build_in_place
from ..base.streamed.load import LoadedInPlace, NotStreamedError
from ..base.task import check_task
from ..bundle import Bundle, SlotTable, Variant
from ..errors import BundleError, CaptureError
from ..graph.deferred import Deferred
from ..graph.edit_base import add_slots
from ..graph.editable import SlottedBase
from ..quantize import RECIPES
from ..quantize.counts import count_quantized
from ..quantize.recipes import WHOLE, Recipe
from ..validate.result import AdapterParity
from ..validate.streamed import Rounding, StreamedBase, check_streamed
from ._exported import Announce, Exported, announce_parity, checkpoint_hashes
from ._heads import with_head
from ._write import write_bundle


@dataclass(frozen=True)
class Asked:
    """What is asked of a streamed export."""

    source: str
    checkpoints: Mapping[str, Checkpoint]
    variants: tuple[str, ...]
    slots: Literal["adapters", "all-linear"]
    max_length: int | None
    max_rank: int | None
    force: bool


def export_streamed(asked: Asked, given: LoadedInPlace, out: Path, lock_timeout: float, announce: Announce) -> Exported:
    """Build, write and compare; :class:`NotStreamedError` where the base must be held in memory after all."""
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
