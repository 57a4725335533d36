"""A language model's graph whose initializers say from which rows of the checkpoint their numbers come.

mobius renames, turns and packs weights. What it does to each is seen by giving it markers for numbers: every row of every
parameter holds a number of its own, in one row's memory. Where these stand in the finished graph, the rows stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...adapters.layout import conv1d_weights
from ...graph.deferred import Deferred, Run, StoredRows
from ...graph.locate.by_content import Location, runs
from ..captured import Captured
from ..load import Loaded
from ..routes.mobius import building, give_weights, skeleton
from ..routes.mobius_fixes import fixes_for
from ..tied import untie
from .checkpoint import widen
from .load import LoadedInPlace, NotStreamedError, linear_arrays

#: Markers are whole numbers from here on, ``_STEP`` apart, so that one that was scaled or shifted is none. float32 holds them.
_FIRST, _STEP, _LAST = 1 << 20, 4, 1 << 24


@dataclass(frozen=True)
class _Lines:
    """Where the lines of an initializer come from: for each the parameter (by number) and its row."""

    parameters: np.ndarray
    rows: np.ndarray
    turned: bool


class _Markers:
    """Markers for the rows of linear maps ``[out, in]`` and the numbers of vectors."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.names = list(shapes)
        self._shapes = shapes
        self._starts = np.cumsum([0, *(shape[0] for shape in shapes.values())])
        if _FIRST + _STEP * int(self._starts[-1]) >= _LAST:
            raise NotStreamedError(f"it has {int(self._starts[-1]):,} rows, more than can be told apart")

    def tensor(self, name: str) -> Any:
        """The markers of a parameter, float32 of its shape."""
        import torch

        number, shape = self.names.index(name), self._shapes[name]
        rows = torch.arange(shape[0], dtype=torch.float64) + int(self._starts[number])
        marked = (_FIRST + 1 + _STEP * rows).to(torch.float32)
        return marked if len(shape) == 1 else marked[:, None].expand(shape)

    def read(self, array: np.ndarray) -> _Lines | None:
        """What stands in ``array``; ``None`` where that is no marker, :class:`NotStreamedError` where it is no whole rows."""
        if array.dtype != np.float32 or array.ndim not in {1, 2} or not array.size or array.flat[0] < _FIRST:
            return None
        column = array if array.ndim == 1 else array[:, 0]
        turned = array.ndim == 2 and not _alike(array, column[:, None])
        if turned:
            column = array[0]
            if not _alike(array, column[None]):
                raise NotStreamedError("a weight is put together of parts of rows")
        steps = column.astype(np.int64) - (_FIRST + 1)
        if (steps % _STEP).any() or steps.min() < 0 or steps.max() >= _STEP * self._starts[-1]:
            raise NotStreamedError("a weight is computed with before it stands in the graph")
        flat = steps // _STEP
        found = np.searchsorted(self._starts, flat, side="right") - 1
        return _Lines(found, flat - self._starts[found], turned)


def _alike(array: np.ndarray, line: np.ndarray) -> bool:
    """Whether all lines of ``array`` are ``line``, without reading what a stride of 0 repeats."""
    axis = 1 if line.shape[1] == 1 else 0
    return array.strides[axis] == 0 or array.shape[axis] == 1 or bool((array == line).all())


def _spans(lines: _Lines) -> list[tuple[int, int, int, int]]:
    """Runs of lines: parameter, first row, count, step between rows."""
    spans: list[tuple[int, int, int, int]] = []
    jumps = np.flatnonzero(np.diff(lines.parameters) != 0) + 1
    for start, stop in zip((0, *jumps), (*jumps, len(lines.rows)), strict=True):
        rows = lines.rows[start:stop]
        at = 0
        while at < len(rows):
            step = max(1, int(rows[at + 1] - rows[at])) if at + 1 < len(rows) else 1
            straight = np.flatnonzero(np.diff(rows[at:]) != step)
            count = int(straight[0]) + 1 if len(straight) else len(rows) - at
            spans.append((int(lines.parameters[start]), int(rows[at]), count, step))
            at += count
    return spans


def _places(
    lines_of: Mapping[str, _Lines], names: Sequence[str], sizes: Mapping[str, int]
) -> dict[str, tuple[Location, ...]]:
    """The locations of every parameter, as :func:`~edgepeft.graph.locate.by_content.locate` gives them."""
    found: dict[str, list[Location]] = {name: [] for name in names}
    spread: dict[str, dict[int, tuple[str, int]]] = {}
    turned = {}
    for initializer, lines in lines_of.items():
        for number in np.unique(lines.parameters):
            name = names[int(number)]
            at = np.flatnonzero(lines.parameters == number)
            rows, size = lines.rows[at], sizes[name]
            if len(at) == size and (rows == np.arange(size)).all() and at[-1] - at[0] == size - 1:
                packed = len(lines.rows) != size
                found[name].append(Location(initializer, lines.turned, int(at[0]) if packed else 0, size, packed))
            else:
                turned[name] = lines.turned
                for row, line in zip(rows.tolist(), at.tolist(), strict=True):
                    spread.setdefault(name, {})[row] = (initializer, line)
    for name, places in spread.items():
        if found[name] or len(places) != sizes[name]:
            continue  # rows that the graph does without (OPT's first two positions): it is not there as a whole
        counts = {initializer: len(lines.rows) for initializer, lines in lines_of.items()}
        found[name] = list(runs([places[row] for row in range(sizes[name])], counts, transposed=turned[name]))
    return {name: tuple(places) for name, places in found.items()}


def _stored(lines: _Lines, arrays: Sequence[np.ndarray]) -> StoredRows:
    return StoredRows([Run(arrays[p], row, count, step) for p, row, count, step in _spans(lines)], widen)


def _graph(loaded: Loaded, linear: Mapping[str, np.ndarray]) -> tuple[ir.Model, dict[str, tuple[Location, ...]]]:
    model = loaded.model
    markers = _Markers({name: array.shape for name, array in linear.items()})
    turned, primary = conv1d_weights(model), {id(p): name for name, p in model.named_parameters()}
    made = {name: markers.tensor(name).t() if name in turned else markers.tensor(name) for name in linear}
    state = {name: made[primary[id(p)]] for name, p in model.named_parameters(remove_duplicate=False)}
    state |= {name: tensor for name, tensor in model.state_dict().items() if name not in state}
    module, graph = skeleton(loaded)
    give_weights(module, graph, state, model.config.model_type)
    lines_of: dict[str, _Lines] = {}
    arrays = list(linear.values())
    for name, value in graph.graph.initializers.items():
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        lines = markers.read(numbers)
        if lines is None:
            value.const_value = ir.tensor(numbers, name=name)
        else:
            lines_of[name] = lines
            value.const_value = Deferred(_stored(lines, arrays), turned=lines.turned, name=name)
    for fix in fixes_for(loaded):
        fix(graph)
    graph = _as_saved(graph)
    kept = {name: lines for name, lines in lines_of.items() if name in graph.graph.initializers}
    return graph, _places(kept, markers.names, {name: array.shape[0] for name, array in linear.items()})


def _as_saved(graph: ir.Model) -> ir.Model:
    """The graph as it is read back from a file, its initializers as they are."""
    held = {name: value.const_value for name, value in graph.graph.initializers.items()}
    tiny = np.zeros(1, np.float32)
    for name, value in graph.graph.initializers.items():
        value.const_value = ir.tensor(tiny, name=name)
    read = ir.from_proto(ir.to_proto(graph))
    for name, value in read.graph.initializers.items():
        value.const_value = held[name]
    for name, value in graph.graph.initializers.items():
        value.const_value = held[name]
    return read


def build_in_place(given: LoadedInPlace, parity: Callable[[ir.Model], float] = lambda graph: 0.0) -> Captured:
    """Build a language model's graph with mobius, without reading its numbers.

    Args:
        given: The model and its stored numbers.
        parity: What the capture's difference from PyTorch is said to be.

    Returns:
        The capture. Its weights are the stored arrays, in the layout of linear maps; initializers are
        :class:`~edgepeft.graph.deferred.Deferred`.

    Raises:
        CaptureError: mobius cannot build the model.
        NotStreamedError: mobius computes with numbers of this model, so they must be read first.
    """
    loaded = given.loaded
    linear = linear_arrays(loaded.model, given.arrays)
    with building(loaded):
        graph, located = _graph(loaded, linear)
    locations, weights = untie(loaded.model, graph, located, linear)
    return Captured(graph=graph, locations=locations, weights=weights, parity=parity(graph))
