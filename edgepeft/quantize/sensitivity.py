"""How far a model's answers move when one of its matrices is rounded, measured by running it so.

The fp32 graph is opened once with every matrix as an input that has a default, and run with one rounded matrix at a time. The sum
over matrices predicts what rounding several costs (divergences of small, independent errors add up: the second-order
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
from .weights import Matrix, matrices

#: The output whose distributions are compared.
OUTPUT = "logits"
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


def measure_sensitivity(
    source: Path,
    slots: SlotTable,
    rounded: Mapping[str, Rounded],
    batches: Sequence[Feeds],
    open_session: Callable[[Path], Any],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Sensitivity:
    """The divergence that each rounded matrix causes by itself.

    Args:
        source: The fp32 graph with an output ``logits``, its weights beside it.
        slots: The bundle's slots.
        rounded: What matrices become, by name.
        batches: What is run for every matrix; few are enough, since they are the same each time.
        open_session: Opens a graph with ONNX Runtime.
        progress: Is called with the number of matrices measured, and of all.

    Raises:
        BundleError: The graph has no output ``logits``, or one that is not finite.
    """
    file = source.with_name(f"{source.stem}_probe.onnx")
    model = ir.load(source)
    found = {matrix.name: matrix for matrix in matrices(model.graph, slots, width=BLOCK) if matrix.name in rounded}
    if all(value.name != OUTPUT for value in model.graph.outputs):
        raise BundleError(
            f"{source.name} has no output {OUTPUT!r}: divergences can be measured of answers to choose from only"
        )
    _open_up(model, found.values())
    ir.save(model, file)
    try:
        session = open_session(file)
        run = _Runs(session, batches)
        each: dict[str, float] = {}
        everything: dict[str, np.ndarray] = {}
        for number, (name, matrix) in enumerate(found.items()):
            change = _changed(matrix, rounded[name])
            each[name] = run.divergence(change)
            everything.update(change)
            progress(number + 1, len(found))
        return Sensitivity(each, run.divergence(everything))
    finally:
        file.unlink(missing_ok=True)


def divergence_of(source: Path, target: Path, batches: Sequence[Feeds], open_session: Callable[[Path], Any]) -> float:
    """The mean divergence of one graph's answers from another's, in nats for each answer."""
    reference = _Runs(open_session(source), batches)
    session = open_session(target)
    return reference.divergence_of(lambda batch: session.run([OUTPUT], dict(batch))[0])


class _Runs:
    """The answers of a session, as logarithms of probabilities, and how far other runs over the same inputs are from them."""

    def __init__(self, session: Any, batches: Sequence[Feeds]) -> None:
        self.session, self.batches = session, batches
        self.references = [_logarithms(session.run([OUTPUT], dict(batch))[0]) for batch in batches]
        if not all(np.isfinite(reference).all() for reference in self.references):
            raise BundleError("the fp32 variant's logits are not finite on these texts: look at the checkpoint")

    def divergence(self, change: Mapping[str, np.ndarray]) -> float:
        return self.divergence_of(lambda batch: self.session.run([OUTPUT], {**batch, **change})[0])

    def divergence_of(self, run: Callable[[Feeds], np.ndarray]) -> float:
        total, rows = 0.0, 0
        for batch, reference in zip(self.batches, self.references, strict=True):
            other = _logarithms(run(batch))
            for one, two in zip(reference, other, strict=True):
                total += float(np.dot(np.exp(one), one - two))
            rows += len(reference)
        return max(0.0, total / max(1, rows))


def _logarithms(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, float32 ``[rows, choices]``."""
    rows = logits.reshape(-1, logits.shape[-1]).astype(np.float32, copy=False)
    rows = rows - rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


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
    weight = rounded.packed.weight()
    made = {matrix.name: weight if matrix.transposed else np.ascontiguousarray(weight.T)}
    if rounded.bias is not None and matrix.linear:
        made[f"{matrix.name}{_OFFSET}"] = rounded.bias
    return made
