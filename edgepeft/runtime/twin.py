"""The twin of a graph: the same weights and outputs, with each slot's three nodes as one of edgepeft's operators.

A graph is some hundred kilobytes beside its weights, so the twin is made from the verified bytes each time a bundle is opened.
Field numbers are those of ``onnx.proto`` (ONNX 1.23).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..bundle.protobuf import Field, all_fields, block, number
from ..bundle.slots import LinearSlot
from .kernel_adapter import part_offsets

#: The domain of the operators, and their version: ``kDomain`` and ``kVersion`` of targets/kernels/src.
DOMAIN, VERSION = "edgepeft", 2
_LOW_RANK_ADD = 1  # the version since which there is LowRankAdd
_GRAPH, _OPSET = 7, 8  # of ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12  # of GraphProto
_UINT8, _INT32, _INT64 = 2, 6, 7  # of TensorProto.DataType
_INT, _INTS = 2, 7  # of AttributeProto.AttributeType


@dataclass(frozen=True)
class Twin:
    """A twin's bytes, and the slots that are one node in it; where it takes adapters in one piece, the inputs for that."""

    model: bytes
    slots: tuple[LinearSlot, ...]
    adapter: str = ""
    rows: str = ""


@dataclass(frozen=True)
class _Node:
    """What is known of a node: where it lies, and the names around it."""

    field: Field
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    op: str
    domain: str


def reach_name(slot: LinearSlot) -> str:
    """The twin's further input of a slot: int32 ``[adapters, rank]``, the part of B's columns in which each rank has numbers."""
    return f"{slot.name}.reach"


def rows_name(adapter: str) -> str:
    """The input beside an adapter in one piece: int64 ``[batch]``, where in it each row's own begins."""
    return f"{adapter}.rows"


def make_twin(model: bytes, slots: Iterable[LinearSlot], *, adapter: str | None = None) -> Twin | None:
    """The twin of a graph; ``None`` where no slot is the three nodes ``y + (x A) B``.

    Slots of another form (over an activation of two dimensions) stay as they are.

    Args:
        model: An ONNX file's bytes.
        slots: The slots that the manifest lists.
        adapter: The name of an input that takes all factors in one piece (:mod:`.kernel_adapter`): the nodes are ``AdapterAdd``.
            ``None``: each slot keeps its inputs A and B, and a further one (:func:`reach_name`): the nodes are ``LowRankAdd``.

    Raises:
        IndexError: The bytes are no ONNX graph.
    """
    top = list(all_fields(model, 0, len(model)))
    graphs = [field for field in top if field.number == _GRAPH]
    if len(graphs) != 1:
        raise IndexError(f"it holds {len(graphs)} graphs")
    (graph,) = graphs
    held = list(all_fields(model, graph.first, graph.end))
    nodes = [_read_node(model, field) for field in held if field.number == _NODE]
    uses = Counter(name for node in nodes for name in node.inputs)
    uses.update(_first_text(model, field) for field in held if field.number == _OUTPUT)

    replaced: dict[int, bytes] = {}  # the place where a field begins → what stands there instead
    fused: list[LinearSlot] = []
    by_input: dict[str, list[_Node]] = {}
    for node in nodes:
        for name in node.inputs:
            by_input.setdefault(name, []).append(node)
    for slot in slots:
        triples = _triples(slot, by_input, uses)
        if not triples:
            continue
        fused.append(slot)
        for down, up, add in triples:
            y = next(name for name in add.inputs if name != up.outputs[0])
            replaced[down.field.start] = replaced[up.field.start] = b""
            x, result = down.inputs[0], add.outputs[0]
            fields = (
                _low_rank_add(slot, y, x, result)
                if adapter is None
                else _adapter_add(slot, len(fused) - 1, y, x, adapter, result)
            )
            replaced[add.field.start] = block(_NODE, fields)
    if not fused:
        return None
    factors = {name for slot in fused for name in (slot.a, slot.b)}
    if adapter is not None:
        for field in held:
            if field.number == _INPUT and _first_text(model, field) in factors:
                replaced[field.start] = b""
            if field.number == _INITIALIZER and _initializer_name(model, field) in factors:
                replaced[field.start] = b""
    parts = [replaced.get(field.start, model[field.start : field.end]) for field in held]
    if adapter is None:
        for slot in fused:
            parts += _slot_input(reach_name(slot), (f"{slot.name}.adapters", f"{slot.name}.reaching"), (1, 0), _INT32)
    else:
        parts += _slot_input(adapter, ("one", f"{adapter}.bytes"), (1, 0), _UINT8)
        parts += _slot_input(rows_name(adapter), (f"{adapter}.batch",), (0,), _INT64)
    whole = [block(_GRAPH, parts) if field is graph else model[field.start : field.end] for field in top]
    version = _LOW_RANK_ADD if adapter is None else VERSION
    content = b"".join([*whole, block(_OPSET, [block(1, DOMAIN), number(2, version)])])
    if adapter is None:
        return Twin(content, tuple(fused))
    return Twin(content, tuple(fused), adapter, rows_name(adapter))


def _triples(
    slot: LinearSlot, by_input: dict[str, list[_Node]], uses: Counter[str]
) -> list[tuple[_Node, _Node, _Node]]:
    """The nodes of a slot wherever it stands; none at all where one of its places has other nodes."""
    found = []
    for down in by_input.get(slot.a, []):
        chain = [down]
        for op in ("MatMul", "Add"):
            output = chain[-1].outputs[0]
            users = by_input.get(output, [])
            if (
                uses[output] != 1
                or len(users) != 1
                or users[0].op != op
                or users[0].domain
                or len(users[0].inputs) != 2
            ):
                return []
            chain.append(users[0])
        _, up, add = chain
        if down.op != "MatMul" or down.domain or down.inputs[1] != slot.a or up.inputs != (down.outputs[0], slot.b):
            return []
        found.append((down, up, add))
    return found if uses[slot.b] == len(found) else []


def _low_rank_add(slot: LinearSlot, y: str, x: str, result: str) -> list[bytes]:
    offsets = part_offsets(slot)
    attribute = [block(1, "offsets"), *(number(8, offset) for offset in offsets), number(20, _INTS)]
    inputs = (y, x, slot.a, slot.b, reach_name(slot))
    return _operator(slot, "LowRankAdd", inputs, result, attribute if len(offsets) > 1 else [])


def _adapter_add(slot: LinearSlot, place: int, y: str, x: str, adapter: str, result: str) -> list[bytes]:
    attribute = [block(1, "slot"), number(3, place), number(20, _INT)]
    return _operator(slot, "AdapterAdd", (y, x, adapter, rows_name(adapter)), result, attribute)


def _operator(slot: LinearSlot, op: str, inputs: tuple[str, ...], result: str, attribute: list[bytes]) -> list[bytes]:
    return [
        *(block(1, name) for name in inputs),
        block(2, result),
        block(3, f"{slot.name}/{op}"),
        block(4, op),
        *([block(5, attribute)] if attribute else []),
        block(7, DOMAIN),
    ]


def _slot_input(name: str, dims: tuple[str | int, ...], default: tuple[int, ...], kind: int) -> list[bytes]:
    """A graph input with a default of no elements: a value and an initializer of that name."""
    shape = [block(1, [block(2, dim) if isinstance(dim, str) else number(1, dim)]) for dim in dims]
    tensor_type = block(1, [number(1, kind), block(2, shape)])
    tensor = [*(number(1, dim) for dim in default), number(2, kind), block(8, name), block(9, b"")]
    return [block(_INPUT, [block(1, name), block(2, [tensor_type])]), block(_INITIALIZER, tensor)]


def _read_node(model: bytes, field: Field) -> _Node:
    texts: dict[int, list[str]] = {}
    for inner in all_fields(model, field.first, field.end):
        if inner.number in (1, 2, 4, 7):
            texts.setdefault(inner.number, []).append(model[inner.first : inner.end].decode("utf-8", "replace"))
    (op,), domain = texts.get(4, [""])[-1:], texts.get(7, [""])[-1]
    return _Node(field, tuple(texts.get(1, ())), tuple(texts.get(2, ())), op, domain)


def _first_text(model: bytes, field: Field) -> str:
    """The name of a graph's input or output."""
    return _text(model, field, 1)


def _initializer_name(model: bytes, field: Field) -> str:
    return _text(model, field, 8)


def _text(model: bytes, field: Field, at: int) -> str:
    found = ""
    for inner in all_fields(model, field.first, field.end):
        if inner.number == at:
            found = model[inner.first : inner.end].decode("utf-8", "replace")
    return found
