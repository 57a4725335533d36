"""Slots of a graph in half precision as float16 inputs: without the Cast behind each, which a GPU runs anew for every token.

A file of an adapter is float32 for every binding, so the graph casts. Where edgepeft itself puts adapters into a GPU's memory, it
casts them once. A graph is some hundred kilobytes beside its weights, so it is changed in the verified bytes when it is opened.
Field numbers are those of ``onnx.proto`` (ONNX 1.23).
"""

from __future__ import annotations

from collections.abc import Collection

from ..bundle.protobuf import LENGTH_DELIMITED, Field, all_fields, block, number, varint
from .twin_nodes import GRAPH, read_graph, text

_NODE, _INITIALIZER, _INPUT = 1, 5, 11  # of GraphProto
_FLOAT, _FLOAT16 = 1, 10  # of TensorProto.DataType


def half_slots(model: bytes, slots: Collection[str]) -> bytes:
    """The graph with those of ``slots`` in float16 that Casts to it alone read, and whose default is of no elements.

    A Cast becomes an Identity, which ONNX Runtime leaves out.

    Args:
        model: An ONNX file's bytes.
        slots: Names of graph inputs in float32.

    Raises:
        IndexError: The bytes are no ONNX graph.
    """
    top, graph, held = read_graph(model)
    readers: dict[str, list[Field]] = {}
    for field in held:
        if field.number == _NODE:
            for name in _texts(model, field, 1):
                if name in slots:
                    readers.setdefault(name, []).append(field)
    empty = {
        _texts(model, field, 8)[0]: field for field in held if field.number == _INITIALIZER and _is_empty(model, field)
    }
    half = {name for name, nodes in readers.items() if name in empty and all(_halves(model, node) for node in nodes)}
    replaced = {node.start: _identity(model, node) for name in half for node in readers[name]}
    for name in half:
        dims = [number(1, dim) for dim in _numbers(model, empty[name], 1)]
        replaced[empty[name].start] = block(_INITIALIZER, [*dims, number(2, _FLOAT16), block(8, name), block(9, b"")])
    for field in held:
        if field.number == _INPUT and _texts(model, field, 1)[0] in half:
            replaced[field.start] = block(_INPUT, _in_half(model, field.first, field.end, (2, 1, 1)))
    inner = [replaced.get(field.start, model[field.start : field.end]) for field in held]
    return b"".join(block(GRAPH, inner) if field is graph else model[field.start : field.end] for field in top)


def _texts(model: bytes, field: Field, at: int) -> list[str]:
    return [text(model, inner) for inner in all_fields(model, field.first, field.end) if inner.number == at]


def _numbers(model: bytes, field: Field, at: int) -> list[int]:
    """A repeated field of numbers, one by one or packed."""
    found = []
    for inner in all_fields(model, field.first, field.end):
        if inner.number == at:
            place = inner.first
            while place < inner.end:
                value, place = varint(model, place, inner.end)
                found.append(value)
    return found


def _is_empty(model: bytes, field: Field) -> bool:
    """Whether an initializer is float32 and of no elements."""
    return 0 in _numbers(model, field, 1) and _numbers(model, field, 2) == [_FLOAT]


def _halves(model: bytes, node: Field) -> bool:
    """Whether a node casts to float16."""
    attributes = [field for field in all_fields(model, node.first, node.end) if field.number == 5]
    to = [number for field in attributes if _texts(model, field, 1) == ["to"] for number in _numbers(model, field, 3)]
    return _texts(model, node, 4) == ["Cast"] and not any(_texts(model, node, 7)) and to == [_FLOAT16]


def _identity(model: bytes, node: Field) -> bytes:
    kept = [f for f in all_fields(model, node.first, node.end) if f.number in (1, 2, 3)]
    return block(_NODE, [*(model[field.start : field.end] for field in kept), block(4, "Identity")])


def _in_half(model: bytes, first: int, end: int, path: tuple[int, ...]) -> list[bytes]:
    """A message with the number at the end of ``path`` (value → type → tensor type → element type) set to float16."""
    at, *rest = path
    parts = []
    for field in all_fields(model, first, end):
        if field.number != at:
            parts.append(model[field.start : field.end])
        elif field.kind == LENGTH_DELIMITED:
            parts.append(block(at, _in_half(model, field.first, field.end, tuple(rest))))
        else:
            parts.append(number(at, _FLOAT16))
    return parts
