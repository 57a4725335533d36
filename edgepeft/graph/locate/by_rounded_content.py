"""Finding a base's parameters among weights that a graph stores in blocks of few bits.

Rounding keeps a weight recognisable: in 4 bits and blocks of 32 its relative RMS error is about 0.1, in 8 bits about
0.005, while another weight of the same shape is off by 1.4. What no number tells (another rounding) is told by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..quantized_weights import Blocks, quantized_weights
from .by_content import Location, runs

#: Largest relative RMS error, ||rounded - weight|| / ||weight||, of a weight that is taken for the same one.
SAME = 0.35
#: The next best place must be worse by this factor.
MARGIN = 2.0

How = Literal["content", "rounded content", "name"]


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
