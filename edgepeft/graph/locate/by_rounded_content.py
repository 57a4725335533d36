"""Weights that a graph stores in blocks of few bits: reading them, and finding a base's parameters among them.

Rounding keeps a weight recognisable: in 4 bits and blocks of 32 its relative RMS error is about 0.1, in 8 bits about
0.005, while another weight of the same shape is off by 1.4. What no number tells (another rounding) is told by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from .by_content import Location, runs

#: Largest relative RMS error, ||rounded - weight|| / ||weight||, of a weight that is taken for the same one.
SAME = 0.35
#: The next best place must be worse by this factor.
MARGIN = 2.0

How = Literal["content", "rounded content", "name"]


@dataclass(frozen=True)
class Blocks:
    """One weight ``[rows, columns]`` in blocks of ``block`` columns: the initializers that hold it.

    Numbers are ``(q - zero) * scale`` with ``q`` of ``bits`` bits, the first column in the lowest bits of a byte
    (ONNX Runtime's MatMulNBits and GatherBlockQuantized).
    """

    name: str
    rows: int
    columns: int
    bits: int
    block: int
    packed: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    #: Names of the nodes that use it.
    users: tuple[str, ...] = ()

    def read(self) -> np.ndarray:
        """The weight as float32 ``[rows, columns]``."""
        blocks = -(-self.columns // self.block)
        q = _unpacked(_array(self.packed), self.bits, self.rows)[:, : blocks * self.block]
        q = q.reshape(self.rows, blocks, self.block).astype(np.float32)
        scales, zeros = self._grid(blocks)
        q -= zeros
        q *= scales
        return q.reshape(self.rows, -1)[:, : self.columns]

    def nearest(self, weight: np.ndarray) -> np.ndarray:
        """The numbers nearest to ``weight`` ``[rows, columns]`` that the blocks can hold with their scales."""
        blocks = -(-self.columns // self.block)
        scales, zeros = self._grid(blocks)
        padded = np.pad(weight, ((0, 0), (0, blocks * self.block - self.columns)))
        steps = padded.reshape(self.rows, blocks, self.block) / np.where(scales == 0, 1, scales)
        q = np.clip(np.rint(steps + zeros), 0, (1 << self.bits) - 1)
        held: np.ndarray = ((q - zeros) * scales).reshape(self.rows, -1)[:, : self.columns]
        return held

    def _grid(self, blocks: int) -> tuple[np.ndarray, np.ndarray | float]:
        """Scales and zero points, ``[rows, blocks, 1]``."""
        scales = _array(self.scales).astype(np.float32).reshape(self.rows, blocks)
        zeros: np.ndarray | float = float(1 << (self.bits - 1))
        if self.zeros is not None:
            stored = _array(self.zeros)
            if stored.dtype == np.uint8:
                stored = _unpacked(stored, self.bits, self.rows)[:, :blocks]
            zeros = stored.astype(np.float32).reshape(self.rows, blocks)[:, :, None]
        return scales[:, :, None], zeros


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _unpacked(packed: np.ndarray, bits: int, rows: int) -> np.ndarray:
    """uint8 ``[rows, numbers]`` out of bytes that hold ``8 / bits`` numbers each."""
    packed = packed.reshape(rows, -1)
    if bits == 8:
        return packed
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(rows, -1)


def _constant(node: ir.Node, index: int) -> ir.Value | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type != "Reshape":
            return None
        value = producer.inputs[0]  # a table that shares the head's numbers under another shape
    return value if value is not None and value.const_value is not None else None


def _blocks_of(node: ir.Node) -> Blocks | None:
    """The weight of a MatMulNBits, or the table of a GatherBlockQuantized along its rows; ``None`` where it is neither."""
    if node.domain != "com.microsoft" or node.op_type not in {"MatMulNBits", "GatherBlockQuantized"}:
        return None
    matmul = node.op_type == "MatMulNBits"
    packed, scales = _constant(node, 1 if matmul else 0), _constant(node, 2)
    zeros = _constant(node, 3)
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
    reordered = matmul and len(node.inputs) > 4 and node.inputs[4] is not None
    if packed is None or scales is None or _array(packed).dtype != np.uint8 or bits not in {4, 8} or reordered:
        return None
    if matmul:
        rows, columns = node.attributes.get_int("N"), node.attributes.get_int("K")
    else:
        axis = node.attributes.get_int("quantize_axis", 1), node.attributes.get_int("gather_axis", 0)
        if axis[0] not in {1, -1} or axis[1] != 0:
            return None
        rows = int(_array(packed).shape[0])
        columns = _array(packed).size // rows * 8 // bits
    return Blocks(packed.name or "", rows, columns, bits, block, packed, scales, zeros, (node.name or "",))


def quantized_weights(graph: ir.Model) -> dict[str, Blocks]:
    """Every weight in blocks, by the name of the initializer that holds its numbers."""
    weights: dict[str, Blocks] = {}
    for node in graph.graph:
        blocks = _blocks_of(node)
        if blocks is None:
            continue
        known = weights.get(blocks.name)
        if known is not None:
            # A table does not say where its last block ends; the head that shares it does.
            kept = known if known.columns <= blocks.columns else blocks
            blocks = replace(kept, users=(*known.users, *blocks.users))
        weights[blocks.name] = blocks
    return weights


@dataclass
class Match:
    """Where parameters were found among quantized weights, how each was told, and by what relative error."""

    locations: dict[str, tuple[Location, ...]] = field(default_factory=dict)
    how: dict[str, How] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


def locate_quantized(graph: ir.Model, parameters: Mapping[str, np.ndarray]) -> Match:
    """Find each of ``parameters`` (float32 ``[out, in]`` by name) as whole rows of a quantized weight.

    A parameter's row of largest norm is looked up in every weight of as many columns; where one row is near, the whole
    block around it must be. The nearest place counts if its error is below ``SAME`` and the next is ``MARGIN`` times
    worse; of places that are equal all count (a table and a head that were quantized apart). Weights that no parameter
    claims are then told by name, where most others were told by content.
    """
    weights = quantized_weights(graph)
    probes: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name, array in parameters.items():
        if array.ndim == 2 and array.size:
            probes[array.shape[1]].append((name, int(np.square(array).sum(axis=1).argmax())))
    places: dict[str, list[tuple[float, Location]]] = defaultdict(list)
    for weight in weights.values():
        names = [(n, row) for n, row in probes.get(weight.columns, ()) if len(parameters[n]) <= weight.rows]
        if not names:
            continue
        rounded = weight.read()
        for name, offset in _near(rounded, parameters, names):
            array = parameters[name]
            block = rounded[offset : offset + len(array)]
            error = float(np.linalg.norm(block - array) / max(1e-30, float(np.linalg.norm(array))))
            packed = weight.rows != len(array)
            places[name].append((error, Location(weight.name, False, offset, len(array), packed)))
    match = Match()
    for name, found in places.items():
        best = min(error for error, _ in found)
        if best >= SAME:
            continue
        # Two places within a tenth are two roundings of one weight; anything else that is near is a doubt.
        same = [location for error, location in found if error <= best * 1.1]
        if any(best * 1.1 < error < best * MARGIN for error, _ in found):
            continue
        match.locations[name], match.how[name], match.errors[name] = tuple(same), "rounded content", best
    _by_rows(match, weights, parameters)
    _by_name(match, weights, parameters)
    return match


#: Rows of a parameter that are looked up first, to see which weights may hold it.
_SAMPLED = 16


def _by_rows(match: Match, weights: Mapping[str, Blocks], parameters: Mapping[str, np.ndarray]) -> None:
    """Find what no weight holds as one block row by row: rows in another order, or spread over several weights.

    Every row must have one nearest row among the weights that nothing claims, and no two the same.
    """
    claimed = {location.initializer for found in match.locations.values() for location in found}
    free = [weight for name, weight in weights.items() if name not in claimed]
    held: dict[str, np.ndarray] = {}
    for name, array in parameters.items():
        fitting = [weight for weight in free if array.ndim == 2 and weight.columns == array.shape[1]]
        if name in match.locations or len(array) < 2 or not fitting:
            continue
        for weight in fitting:
            if weight.name not in held:
                held[weight.name] = weight.read()
        sampled = array[np.unique(np.linspace(0, len(array) - 1, _SAMPLED).astype(int))]
        near = _nearest_rows(sampled, {weight.name: held[weight.name] for weight in fitting})
        among = {each[0] for each in near if each is not None}
        found = _nearest_rows(array, {each: held[each] for each in held if each in among}) if among else []
        settled = [each for each in found if each is not None]
        if settled and len(set(settled)) == len(array):
            match.locations[name] = runs(settled, {each: len(held[each]) for each in among}, transposed=False)
            match.how[name] = "rounded content"


def _nearest_rows(rows: np.ndarray, held: Mapping[str, np.ndarray]) -> list[tuple[str, int] | None]:
    """For each of ``rows`` the weight and the row in it that are nearest; ``None`` where none is near, or two are."""
    places = [(name, row) for name, array in held.items() for row in range(len(array))]
    stacked = np.concatenate(list(held.values()))
    square, own = np.square(stacked).sum(axis=1), np.square(rows).sum(axis=1)
    nearest: list[tuple[str, int] | None] = []
    for start in range(0, len(rows), 1 << 10):
        part = slice(start, start + (1 << 10))
        distance = np.maximum(square[None] - 2 * (rows[part] @ stacked.T) + own[part, None], 0)
        best = distance.argmin(axis=1)
        lowest = np.take_along_axis(distance, best[:, None], axis=1)[:, 0]
        np.put_along_axis(distance, best[:, None], np.inf, axis=1)
        certain = (lowest < SAME**2 * own[part]) & (distance.min(axis=1) > MARGIN**2 * lowest)
        nearest += [places[at] if sure else None for at, sure in zip(best, certain, strict=True)]
    return nearest


def _near(
    rounded: np.ndarray, parameters: Mapping[str, np.ndarray], names: Sequence[tuple[str, int]]
) -> Iterator[tuple[str, int]]:
    """Each parameter of ``names`` with every row offset at which its probe row is near a row of ``rounded``."""
    probes = np.stack([parameters[name][row] for name, row in names])
    square = np.square(probes).sum(axis=1)
    for start in range(0, len(rounded), 1 << 14):  # a vocabulary times all probes would take a gigabyte
        part = rounded[start : start + (1 << 14)]
        distance = np.square(part).sum(axis=1)[:, None] - 2 * (part @ probes.T) + square[None]
        for row, probe in zip(*np.nonzero(distance < 4 * SAME**2 * square[None]), strict=True):
            name, at = names[probe]
            offset = start + int(row) - at
            if 0 <= offset <= len(rounded) - len(parameters[name]):
                yield name, offset


def _by_name(match: Match, weights: Mapping[str, Blocks], parameters: Mapping[str, np.ndarray]) -> None:
    """Give weights that no content claims to the parameters whose module path their names hold."""
    claimed = {location.initializer for found in match.locations.values() for location in found}
    free = {name: weight for name, weight in weights.items() if name not in claimed}
    if len(free) > len(weights) // 2:
        return
    for parameter, array in parameters.items():
        if parameter in match.locations or array.ndim != 2:
            continue
        path = parameter.removesuffix(".weight")
        spelt = {f"{path}.", f"{path.replace('.self_attn.', '.attn.')}."}
        named = [
            weight
            for weight in free.values()
            if (weight.rows, weight.columns) == array.shape
            and any(s in f"{text.replace('/', '.')}." for s in spelt for text in (weight.name, *weight.users))
        ]
        if len(named) == 1:
            match.locations[parameter] = (Location(named[0].name, False, 0, len(array), False),)
            match.how[parameter] = "name"
