"""How far a model's answers move when one of its matrices is rounded, measured by running it so.

The fp32 graphs are opened once with every matrix as an input that has a default, and run with one rounded matrix at a time. The
sum over matrices predicts what rounding several costs (divergences of small, independent errors add up: the second-order
argument of HAWQ, arXiv:1911.03852), up to a factor that one run with all of them rounded gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..errors import BundleError
from ..graph.nodes import FLOAT, constant
from ..graph.passes.edit import insert_behind
from .moments import Feeds
from .nbits import Rounded
from .packing import BLOCK
from .stages import OUTPUT, Answers, Steps
from .weights import Matrix, matrices

_OFFSET = "/probe_offset"


@dataclass(frozen=True)
class Sensitivity:
    """Mean Kullback-Leibler divergence from fp32, in nats, with one matrix rounded, by its name; and with all of them."""

    each: Mapping[str, float]
    together: float

    @property
    def factor(self) -> float:
        """By how much all of them together cost more, or less, than their sum."""
        total = sum(self.each.values())
        return self.together / total if total > 0 else 1.0


@dataclass(frozen=True)
class Stage:
    """One of a model's graphs: its fp32 file, what matrices become by name, and what stands before their names elsewhere."""

    source: Path
    rounded: Mapping[str, Rounded]
    label: str = ""


def measure_sensitivity(
    source: Path,
    slots: SlotTable,
    rounded: Mapping[str, Rounded],
    batches: Sequence[Feeds],
    open_session: Callable[[Path], Any],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Sensitivity:
    """:func:`sensitivity_of` a model of one graph."""
    return sensitivity_of([Stage(source, rounded)], slots, [(batch,) for batch in batches], open_session, progress)


def sensitivity_of(
    stages: Sequence[Stage],
    slots: SlotTable,
    batches: Sequence[Steps],
    open_session: Callable[[Path], Any],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Sensitivity:
    """The divergence that each rounded matrix causes by itself.

    Args:
        stages: The graphs in the order in which they run, weights beside them; the last one has an output ``logits``.
        slots: The bundle's slots.
        batches: What is run for every matrix, feeds of each graph; few are enough, since they are the same each time.
        open_session: Opens a graph with ONNX Runtime.
        progress: Is called with the number of matrices measured, and of all.

    Raises:
        BundleError: The last graph has no output ``logits``, or one that is not finite.
    """
    files = [stage.source.with_name(f"{stage.source.stem}_probe.onnx") for stage in stages]
    models = [ir.load(stage.source) for stage in stages]
    if all(value.name != OUTPUT for value in models[-1].graph.outputs):
        raise BundleError(
            f"{stages[-1].source.name} has no output {OUTPUT!r}: divergences can be measured of answers to choose from only"
        )
    opened: list[tuple[int, Stage, Matrix]] = []
    for place, (stage, model) in enumerate(zip(stages, models, strict=True)):
        found = [m for m in matrices(model.graph, slots, width=BLOCK) if m.name in stage.rounded]
        _open_up(model, found)
        opened += [(place, stage, matrix) for matrix in found]
    try:
        for model, file in zip(models, files, strict=True):
            ir.save(model, file)
        answers = Answers([open_session(file) for file in files], batches)
        each: dict[str, float] = {}
        everything: dict[int, dict[str, np.ndarray]] = {}
        for number, (place, stage, matrix) in enumerate(opened):
            change = _changed(matrix, stage.rounded[matrix.name])
            each[f"{stage.label}{matrix.name}"] = answers.divergence({place: change})
            everything.setdefault(place, {}).update(change)
            progress(number + 1, len(opened))
        return Sensitivity(each, answers.divergence(everything))
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def divergence_of(source: Path, target: Path, batches: Sequence[Feeds], open_session: Callable[[Path], Any]) -> float:
    """The mean divergence of one graph's answers from another's, in nats for each answer."""
    return divergence_between([source], [target], [(batch,) for batch in batches], open_session)


def divergence_between(
    sources: Sequence[Path], targets: Sequence[Path], batches: Sequence[Steps], open_session: Callable[[Path], Any]
) -> float:
    """The same of models of several graphs, each in the order in which they run."""
    return Answers([open_session(file) for file in sources], batches).divergence_of(
        [open_session(file) for file in targets]
    )


def _open_up(model: ir.Model, found: Iterable[Matrix]) -> None:
    """Make each matrix an input with a default, and add an offset, zero by default, to what its linear nodes write."""
    graph = model.graph
    for matrix in found:
        graph.inputs.append(matrix.value)
        for node in matrix.linear:
            _add_offset(graph, node, matrix)


def _add_offset(graph: ir.Graph, node: ir.Node, matrix: Matrix) -> None:
    name = f"{matrix.name}{_OFFSET}"
    known = graph.initializers.get(name)
    offset = known if known is not None else constant(graph, name, np.zeros(matrix.shape[0], np.float32))
    if known is None:
        graph.inputs.append(offset)
    before = node.outputs[0]
    users = tuple(before.uses())
    add = ir.node("Add", [before, offset], name=f"{node.name}{_OFFSET}")
    after = add.outputs[0]
    after.type, after.shape = before.type or FLOAT, before.shape
    insert_behind(before, [add])
    for user, index in users:
        user.replace_input_with(index, after)
    if before.is_graph_output():
        place = list(graph.outputs).index(before)
        graph.outputs[place] = after
        after.name, before.name = before.name, f"{before.name}/probed"
    else:
        after.name = f"{before.name}/probed"


def _changed(matrix: Matrix, rounded: Rounded) -> dict[str, np.ndarray]:
    """What is fed in place of a matrix: its rounded numbers, and the bias."""
    weight = rounded.weight()
    made = {matrix.name: weight if matrix.transposed else np.ascontiguousarray(weight.T)}
    if rounded.bias is not None and matrix.linear:
        made[f"{matrix.name}{_OFFSET}"] = rounded.bias
    return made
