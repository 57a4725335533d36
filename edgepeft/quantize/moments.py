"""Means and covariances of what goes into a base's linear layers, measured segment by segment so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..errors import BundleError
from ..graph.segments import Segment, values_read, write_segment
from .weights import matrices

#: Bytes of second moments that one segment may hold.
BUDGET = 200_000_000

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Moments:
    """What is known of a layer's inputs ``x``: their mean ``[in]`` and covariance ``[in, in]``, float32, over ``rows`` tokens.

    Tokens count by ``1 / (|x|^2 + m)``, where ``m`` is the mean of ``|x|^2``: a few tokens of huge activations (attention
    sinks, arXiv:2402.17762) would else outweigh all others, while what their errors cost is one token's.
    """

    mean: np.ndarray
    covariance: np.ndarray
    rows: int


class _Sums:
    """Weighted sums over the rows seen so far."""

    def __init__(self) -> None:
        self.level = self.weight = 0.0
        self.rows = 0
        self.first = self.second = np.zeros(0, np.float32)

    def add(self, x: np.ndarray) -> bool:
        """Count the rows of ``x`` ``[rows, in]``; whether all of it is finite."""
        energy = np.einsum("ri,ri->r", x, x, dtype=np.float64)
        if not np.isfinite(energy).all():
            return False
        self.level = self.level or float(energy.mean()) or 1.0  # of the first run: it only has to be of the right size
        weights = (self.level / (energy + self.level)).astype(np.float32)
        scaled = x * np.sqrt(weights)[:, None]
        first, second = weights @ x, scaled.T @ scaled  # numpy computes half of a product with itself
        if self.rows:
            self.first += first
            self.second += second
        else:
            self.first, self.second = first, second
        self.weight += float(weights.sum(dtype=np.float64))
        self.rows += len(x)
        return True

    def moments(self) -> Moments:
        mean = self.first / np.float32(self.weight)
        return Moments(mean, self.second / np.float32(self.weight) - np.outer(mean, mean), self.rows)


@dataclass(frozen=True)
class _Segment:
    """Consecutive nodes of a graph: what they take from before, what they leave for later, and what is watched in them."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    watched: tuple[str, ...]


def linear_inputs(graph: ir.Graph, slots: SlotTable) -> dict[str, str]:
    """The value that each matrix of the base multiplies, by the matrix's initializer. Those with several inputs are left out."""
    found: dict[str, str] = {}
    for matrix in matrices(graph, slots):
        read = {node.inputs[0].name or "" for node in matrix.linear if node.inputs[0] is not None}
        if len(read) == 1:
            found[matrix.name] = read.pop()
    return found


def measure_moments(
    source: Path,
    slots: SlotTable,
    batches: Sequence[Feeds],
    open_session: Callable[[Path], Any],
    *,
    budget: int = BUDGET,
    only: Collection[str] | None = None,
    counted: Sequence[int] | None = None,
) -> Iterator[dict[str, Moments]]:
    """Mean and covariance of every value that linear layers read, a segment of the graph at a time.

    Each segment is run once on what the one before it left, so that time grows linearly with the model.

    Args:
        source: The fp32 graph, its weights beside it.
        slots: The bundle's slots; their tensors are fed by ``batches``, or take their defaults.
        batches: Inputs of the graph, and slot tensors, of each run. Every row of every run counts alike.
        open_session: Opens a segment's graph with ONNX Runtime.
        budget: Bytes of covariances that are held at a time.
        only: The matrices whose inputs are measured; all by default.
        counted: How many rows of each run count, from the first on; all by default. What fills a window up is left out so.

    Yields:
        Moments by the name of the value, for each segment.

    Raises:
        BundleError: An activation is not finite; the message names it.
    """
    model = ir.load(source)
    read = linear_inputs(model.graph, slots)
    watched = {value for matrix, value in read.items() if only is None or matrix in only}
    defaults = {
        name: model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        for name in slots.tensors()
        if name in model.graph.initializers
    }
    kept: list[dict[str, np.ndarray]] = [{**defaults, **batch} for batch in batches]
    fed = {value.name or "" for value in model.graph.inputs}
    segments = list(_segments(model.graph, watched, fed, budget))
    for number, segment in enumerate(segments):
        later = {name for each in segments[number + 1 :] for name in each.inputs}
        names = [n for n in dict.fromkeys((*segment.outputs, *segment.watched)) if n not in fed]
        file = source.with_name(f"{source.stem}_segment.onnx")
        if names:
            write_segment(model, Segment(segment.inputs, tuple(names)), kept[0], file)
        session = open_session(file) if names else None
        sums = {name: _Sums() for name in segment.watched}
        for place, values in enumerate(kept):
            outputs = session.run(names, {name: values[name] for name in segment.inputs}) if session is not None else ()
            found = {**values, **dict(zip(names, outputs, strict=True))}
            for name in segment.watched:
                rows = found[name].reshape(-1, found[name].shape[-1])
                if not sums[name].add(rows if counted is None else rows[: counted[place]]):
                    raise BundleError(
                        f"activation {name} of the fp32 variant is not finite on the calibration texts: nothing can be fitted "
                        f"to it. {_origin(model.graph)}"
                    )
            values.update({name: found[name] for name in segment.outputs})
            for name in set(values) - later:
                del values[name]
        del session
        file.unlink(missing_ok=True)
        yield {name: each.moments() for name, each in sums.items()}


def _origin(graph: ir.Graph) -> str:
    """Which stored weight is to blame for an activation that is not finite."""
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and not np.isfinite(tensor.numpy()).all():
            return f"Weight {name} of the checkpoint holds NaN or infinity"
    return "All weights are finite: the model computes numbers beyond float32 here. Look at its largest weights"


def _segments(graph: ir.Graph, watched: set[str], fed: set[str], budget: int) -> Iterator[_Segment]:
    nodes = list(graph)
    made = {value.name or "": place for place, node in enumerate(nodes) for value in node.outputs}
    sizes: dict[str, int] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.name in watched:
                sizes[value.name] = _width(node, value, sizes)
    made.update(dict.fromkeys(watched & fed, -1))  # a layer may read what the graph is given
    ordered = sorted(watched & made.keys(), key=lambda name: (made[name], name))
    groups: list[list[str]] = [[]]
    held = 0
    for name in ordered:
        cost = 4 * sizes[name] ** 2
        if groups[-1] and held + cost > budget:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += cost
    last = made[ordered[-1]] if ordered else -1
    used = {
        value.name or "": place for place, node in enumerate(nodes[: last + 1]) for value in values_read(node)
    }  # the last place at which each value is read
    start = 0
    for group in groups:
        if not group:
            continue
        stop = made[group[-1]]
        inside = nodes[start : stop + 1]
        taken = {value.name or "" for node in inside for value in values_read(node)}
        before = tuple(sorted(n for n in taken if n in fed or (n in made and 0 <= made[n] < start)))
        left = tuple(
            sorted(
                value.name or "" for node in inside for value in node.outputs if used.get(value.name or "", -1) > stop
            )
        )
        yield _Segment(before, left, tuple(group))
        start = stop + 1


def _width(node: ir.Node, value: ir.Value, known: Mapping[str, int]) -> int:
    """How many numbers a row of a linear layer's input has, told by its weight."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = weight.const_value if weight is not None else None
    if node.inputs[0] is value and tensor is not None and len(tensor.shape) == 2:
        rows, columns = (int(n) for n in tensor.shape)  # type: ignore[arg-type]
        return columns if node.attributes.get_int("transB", 0) else rows
    shape = value.shape
    last = shape[-1] if shape is not None and len(shape) else None
    return known.get(value.name or "", last if isinstance(last, int) else 0)
