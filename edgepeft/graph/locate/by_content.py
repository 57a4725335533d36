"""Finding the base's parameters in a graph by their content.

Capture may rename, transpose, share, pack and take apart weights as it likes; the numbers stay. A parameter's location is
the initializer that holds its numbers: as they are, transposed, or as a block of a packed matrix. Where rows were put into
another order or spread over several matrices, each run of rows has a location of its own.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..nodes import linear_users

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class Location:
    """Where a parameter's numbers lie: ``size`` rows/columns from ``offset`` of ``initializer``.

    ``transposed`` is true where the initializer holds ``W.T`` (``[in, out]``; the block is in the columns), false where
    it holds the parameter as PyTorch does (the block is in the rows). ``packed`` is true where it is a proper block.
    ``of`` is set where only a run of the parameter's ``of`` rows lies there: those from ``start`` in steps of ``step``.
    """

    initializer: str
    transposed: bool
    offset: int
    size: int
    packed: bool
    start: int = 0
    step: int = 1
    of: int | None = None

    @property
    def rows(self) -> slice:
        """Which rows of the parameter lie here."""
        return slice(self.start, self.start + self.size * self.step, self.step)

    def read(self, array: np.ndarray) -> np.ndarray:
        """The parameter, or its ``rows``, in PyTorch's layout, out of the initializer's ``array``."""
        end = self.offset + self.size
        return array[..., self.offset : end].T if self.transposed else array[self.offset : end]

    def write(self, array: np.ndarray, parameter: np.ndarray) -> None:
        """Put ``parameter`` (whole, in PyTorch's layout), or its ``rows``, into the initializer's writable ``array``."""
        end = self.offset + self.size
        rows = parameter[self.rows]
        if self.transposed:
            array[..., self.offset : end] = rows.T
        else:
            array[self.offset : end] = rows


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, digest_size=16).digest()


def float_initializers(model: ir.Model, also: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The float initializers of the main graph by name: those that hold more than one number, and ``also`` these."""
    arrays = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _FLOATS and (tensor.size > 1 or name in also):
            arrays[name] = tensor.numpy()
    return arrays


class _Index:
    """Initializers by whole content and, for matrices, by single columns and rows."""

    def __init__(self, arrays: Mapping[str, np.ndarray], settle: Callable[[], None]) -> None:
        self.arrays = arrays
        self.settle = settle
        self.whole: dict[tuple[tuple[int, ...], bytes], list[str]] = defaultdict(list)
        for name, array in arrays.items():
            self.whole[array.shape, _digest(array)].append(name)
        settle()
        #: Initializers that hold a parameter as a whole.
        self.taken: set[str] = set()
        self.columns: dict[bytes, list[tuple[str, int]]] | None = None
        self.rows: dict[bytes, list[tuple[str, int]]] | None = None

    def exact(self, parameter: np.ndarray) -> Iterable[Location]:
        size = parameter.shape[0]
        for name in self.whole.get((parameter.shape, _digest(parameter)), ()):
            yield Location(name, transposed=False, offset=0, size=size, packed=False)
        if parameter.ndim == 2:
            for name in self.whole.get((parameter.T.shape, _digest(parameter.T)), ()):
                yield Location(name, transposed=True, offset=0, size=size, packed=False)

    def _build_blocks(self) -> None:
        """Matrices by line, those left out that are a whole parameter: indexing all of them takes longer than the rest."""
        self.columns, self.rows = defaultdict(list), defaultdict(list)
        for name, array in self.arrays.items():
            if array.ndim == 2 and name not in self.taken:
                for offset, column in enumerate(np.ascontiguousarray(array.T)):
                    self.columns[_digest(column)].append((name, offset))
                for offset, row in enumerate(array):
                    self.rows[_digest(row)].append((name, offset))
                self.settle()

    def pieces(self, parameter: np.ndarray) -> Iterable[Location]:
        """A vector inside a longer one: the bias of a packed projection."""
        size = parameter.shape[0]
        for name, array in self.arrays.items():
            if array.ndim == 1 and array.shape[0] > size:
                for offset in np.flatnonzero(array[: array.shape[0] - size + 1] == parameter[0]):
                    if np.array_equal(array[offset : offset + size], parameter):
                        yield Location(name, transposed=False, offset=int(offset), size=size, packed=True)

    def blocks(self, parameter: np.ndarray) -> Iterable[Location]:
        if parameter.ndim == 1:
            # One number repeated says nothing, and would be found in every padding.
            yield from self.pieces(parameter) if parameter.min() != parameter.max() else ()
        if parameter.ndim != 2:
            return
        if self.columns is None or self.rows is None:
            self._build_blocks()
        assert self.columns is not None
        assert self.rows is not None
        size, key = parameter.shape[0], _digest(parameter[0])
        for transposed, lines in ((True, self.columns), (False, self.rows)):
            for name, offset in lines.get(key, ()):
                array = self.arrays[name]
                location = Location(name, transposed=transposed, offset=offset, size=size, packed=True)
                if array.shape != parameter.shape and np.array_equal(location.read(array), parameter):
                    yield location

    def scattered(self, parameter: np.ndarray) -> tuple[Location, ...]:
        """The rows of a matrix, every one of them, wherever each lies; empty where one is missing or in doubt."""
        if parameter.ndim != 2 or len(parameter) < 2 or self.columns is None or self.rows is None:
            return ()
        width = parameter.shape[1]
        for transposed, lines in ((True, self.columns), (False, self.rows)):
            places: list[list[tuple[str, int]]] = []
            for row in parameter:
                found = lines.get(_digest(row), ())
                places.append([(n, at) for n, at in found if self.arrays[n].shape[0 if transposed else 1] == width])
                if not found:
                    break
            else:
                lines_of = {name: array.shape[-1 if transposed else 0] for name, array in self.arrays.items()}
                return runs(_settled(places), lines_of, transposed=transposed)
        return ()


def _settled(places: list[list[tuple[str, int]]]) -> list[tuple[str, int]]:
    """One place for each row; rows whose numbers stand at several places go beside the row before or after them.

    Empty where a row's place stays in doubt, or two rows share one.
    """
    known = {row: found[0] for row, found in enumerate(places) if len(found) == 1}
    doubtful = [row for row, found in enumerate(places) if len(found) != 1]
    for rows, side in ((doubtful, 1), (doubtful[::-1], -1)):
        for row in rows:
            name, offset = known.get(row - side, ("", 0))
            if row not in known and (name, offset + side) in places[row]:
                known[row] = (name, offset + side)
    settled = [known[row] for row in range(len(places)) if row in known]
    return settled if len(set(settled)) == len(places) else []


def runs(settled: Sequence[tuple[str, int]], lines: Mapping[str, int], *, transposed: bool) -> tuple[Location, ...]:
    """Rows of a parameter with their places, as runs: neighbours in an initializer whose rows are evenly spaced.

    ``settled`` is the initializer and the line in it of every row, ``lines`` how many lines each initializer has.
    """
    spans: list[list[int]] = []
    names: list[str] = []
    order = sorted(range(len(settled)), key=lambda row: settled[row])
    for row in order:
        name, offset = settled[row]
        last = spans[-1] if spans else None
        if last is not None and names[-1] == name and last[0] + last[1] == offset:
            first, size, start, step = last
            if size == 1 and row > start:
                spans[-1] = [first, 2, start, row - start]
                continue
            if size > 1 and row == start + size * step:
                last[1] += 1
                continue
        spans.append([offset, 1, row, 1])
        names.append(name)
    return tuple(
        Location(
            name,
            transposed=transposed,
            offset=offset,
            size=size,
            packed=lines[name] != size,
            start=start,
            step=step,
            of=len(settled),
        )
        for name, (offset, size, start, step) in zip(names, spans, strict=True)
    )


def _beside(bias: np.ndarray, weight: tuple[Location, ...], arrays: Mapping[str, np.ndarray]) -> tuple[Location, ...]:
    """A bias in the order in which its weight's rows were found, where one vector holds it so."""
    if not weight or weight[0].of != len(bias) or len({place.initializer for place in weight}) > 1:
        return ()
    vectors = [
        name
        for name, array in arrays.items()
        if array.shape == bias.shape
        and all(np.array_equal(array[p.offset : p.offset + p.size], bias[p.rows]) for p in weight)
    ]
    return tuple(
        Location(vectors[0], False, p.offset, p.size, p.packed, p.start, p.step, p.of)
        for p in weight
        if len(vectors) == 1
    )


def _one_number(model: ir.Model, bias: np.ndarray, weight: tuple[Location, ...]) -> tuple[Location, ...]:
    """The bias of a linear layer of one output: its content says nothing, but its place behind the weight does."""
    values = {}
    for place in weight:
        for node in linear_users(model.graph.initializers[place.initializer]) if not place.packed else ():
            behind = [user for user, _ in node.outputs[0].uses() if user.op_type == "Add"]
            beside = list(node.inputs[2:]) if node.op_type == "Gemm" else [v for user in behind for v in user.inputs]
            for value in beside:
                tensor = value.const_value if value is not None and value.name in model.graph.initializers else None
                if tensor is not None and tensor.size == 1 and tensor.numpy().reshape(-1)[0] == bias.reshape(-1)[0]:
                    values[value.name or ""] = tensor  # type: ignore[union-attr] # it has a tensor
    return tuple(Location(name, transposed=False, offset=0, size=1, packed=False) for name in values)


def locate(
    model: ir.Model, parameters: Mapping[str, np.ndarray], *, settle: Callable[[], None] = lambda: None
) -> dict[str, tuple[Location, ...]]:
    """Every location of every parameter; an empty tuple for one that the graph does not hold.

    What is found nowhere as a whole is looked for row by row; its locations then hold runs of rows (``of``) that make up
    the parameter together.

    ``parameters`` are float32 arrays in PyTorch's layout, by name. Equal contents give equal locations: callers that edit
    one parameter check with :func:`shared` that no other lives in the same place. ``settle`` is called when much of the
    graph was read, for one whose weights are mapped from a file.
    """
    index = _Index(float_initializers(model), settle)
    # A single number (CLIP's temperature) says nothing by its content.
    located = {name: tuple(index.exact(array)) if array.size > 1 else () for name, array in parameters.items()}
    index.taken = {location.initializer for locations in located.values() for location in locations}
    for name, locations in located.items():
        if not locations and parameters[name].ndim <= 2 and parameters[name].size > 1:
            located[name] = tuple(index.blocks(parameters[name])) or index.scattered(parameters[name])
    for name, locations in located.items():
        weight = located.get(f"{name.removesuffix('bias')}weight", ())
        if not locations and name.endswith(".bias") and parameters[name].shape == (1,):
            located[name] = _one_number(model, parameters[name], weight)
        elif not locations and name.endswith(".bias") and parameters[name].size > 1:
            located[name] = _beside(parameters[name], weight, index.arrays)
    return located


def shared(locations: Mapping[str, tuple[Location, ...]], parameter: str) -> list[str]:
    """The other parameters found at a place where ``parameter`` was found."""
    mine = set(locations.get(parameter, ()))
    return [other for other, theirs in locations.items() if other != parameter and mine & set(theirs)]
