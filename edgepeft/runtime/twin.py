"""The twin of a graph: the same weights and outputs, with each slot's three nodes as one of edgepeft's operators, and quantized
matrices too.

A graph is some hundred kilobytes beside its weights, so the twin is made from the verified bytes each time a bundle is opened.
Field numbers are those of ``onnx.proto`` (ONNX 1.23).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..bundle.protobuf import Field, all_fields, block, number
from ..bundle.slots import LinearSlot
from .kernel_adapter import part_offsets
from .stored_weights import read_weight
from .twin_joins import CONTRIB, NORMS, Gated, Norm, gated_behind, norm_behind, together
from .twin_matrices import matrices, replace_matrices
from .twin_nodes import GRAPH, NODE, Made, Node, NodeList, Place, Uses, read_graph, read_node, text

#: The domain of the operators, and their version: ``kDomain`` and ``kVersion`` of targets/kernels/src.
DOMAIN, VERSION = "edgepeft", 4
_LOW_RANK_ADD = 1  # the version since which there is LowRankAdd
_OPSET = 8  # of ModelProto
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # of GraphProto
_UINT8, _INT32, _INT64 = 2, 6, 7  # of TensorProto.DataType
_INT, _INTS = 2, 7  # of AttributeProto.AttributeType


@dataclass(frozen=True)
class Twin:
    """A twin's bytes, and the slots that are one node in it; where it takes adapters in one piece, the inputs for that.

    ``matrices`` is how many quantized matrices ``BlockMatMul`` multiplies by.
    """

    model: bytes
    slots: tuple[LinearSlot, ...]
    adapter: str = ""
    rows: str = ""
    matrices: int = 0


def reach_name(slot: LinearSlot) -> str:
    """The twin's further input of a slot: int32 ``[adapters, rank]``, the part of B's columns in which each rank has numbers."""
    return f"{slot.name}.reach"


def rows_name(adapter: str) -> str:
    """The input beside an adapter in one piece: int64 ``[batch]``, where in it each row's own begins."""
    return f"{adapter}.rows"


def make_twin(
    model: bytes,
    slots: Iterable[LinearSlot],
    *,
    adapter: str | None = None,
    join: bool = True,
    norms: Collection[str] = (),
    silus: Collection[str] = (),
    blocks: bool = False,
) -> Twin | None:
    """The twin of a graph; ``None`` where no slot is the three nodes ``y + (x A) B``, and no matrix is replaced.

    Slots of another form (over an activation of two dimensions) stay as they are.

    Args:
        model: An ONNX file's bytes.
        slots: The slots that the manifest lists.
        adapter: The name of an input that takes all factors in one piece (:mod:`.kernel_adapter`): the nodes are ``AdapterAdd``.
            ``None``: each slot keeps its inputs A and B, and a further one (:func:`reach_name`): the nodes are ``LowRankAdd``.
        join: With ``adapter``: slots that read the same activations are one node (``AdapterAddEach``).
        norms: With ``adapter``: a slot before one of these operators (:data:`~.twin_joins.NORMS`) is one node with it
            (``AdapterSkipNorm``).
        silus: With ``adapter`` and ``join``: two slots behind which ``silu(gate) * up`` stands in one of these forms
            (:data:`~.twin_joins.SILUS`) are one node with it (``AdapterSiluMul``).
        blocks: Matrices of 4 or 8 bits in blocks of 32 are ``BlockMatMul`` (:mod:`.twin_matrices`).

    Raises:
        IndexError: The bytes are no ONNX graph.
    """
    top, graph, held = read_graph(model)
    nodes = [read_node(model, field) for field in held if field.number == NODE]
    uses = Uses(nodes, [_first_text(model, field) for field in held if field.number == _OUTPUT])

    fused: list[LinearSlot] = []
    places: list[Place] = []
    for slot in slots:
        found = _places(slot, len(fused), uses)
        if found:
            fused.append(slot)
            places += found
    replaced = matrices(nodes, uses, _weights(model, held)) if blocks else []
    if not fused and not replaced:
        return None
    made = NodeList(nodes)
    replace_matrices(made, replaced, uses, DOMAIN)
    if not fused:  # nothing takes an adapter
        adapter = None
    nested = any(node.nested for node in nodes)  # what a subgraph reads is not known here
    if not nested:
        for node in nodes:
            if node.domain == CONTRIB and node.op in NORMS:
                made.shorten(node, _norm_outputs(node, uses), model)
    if adapter is None:
        for place in places:
            made.replace(place.nodes, _low_rank_add(place), place.nodes[-1])
    else:
        order = {node.field.start: number for number, node in enumerate(nodes)}
        places.sort(key=lambda place: place.nodes[0].field.start)
        groups = together(places, uses, order) if join else [[place] for place in places]
        _with_adapters(made, groups, uses, adapter, norms, () if nested else silus)
    dropped = set[int]()
    if adapter is not None:
        factors = {name for slot in fused for name in (slot.a, slot.b)}
        for field in held:
            name_at = {_INPUT: 1, _INITIALIZER: 8}.get(field.number)
            if name_at is not None and _text(model, field, name_at) in factors:
                dropped.add(field.start)
    rest = [field for field in held if field.number != NODE and field.start not in dropped]
    parts = [*made.written(model), *(model[field.start : field.end] for field in rest)]
    if adapter is None:
        for slot in fused:
            parts += _slot_input(reach_name(slot), (f"{slot.name}.adapters", f"{slot.name}.reaching"), (1, 0), _INT32)
    else:
        parts += _slot_input(adapter, ("one", f"{adapter}.bytes"), (1, 0), _UINT8)
        parts += _slot_input(rows_name(adapter), (f"{adapter}.batch",), (0,), _INT64)
    whole = [block(GRAPH, parts) if field is graph else model[field.start : field.end] for field in top]
    version = _LOW_RANK_ADD if adapter is None and not replaced else VERSION
    content = b"".join([*whole, block(_OPSET, [block(1, DOMAIN), number(2, version)])])
    if adapter is None:
        return Twin(content, tuple(fused), matrices=len(replaced))
    return Twin(content, tuple(fused), adapter, rows_name(adapter), len(replaced))


def _with_adapters(
    made: NodeList,
    groups: list[list[Place]],
    uses: Uses,
    adapter: str,
    norms: Collection[str],
    silus: Collection[str],
) -> None:
    for group in groups:
        gated = gated_behind(group, uses, silus)
        if gated is not None:
            gone = [node for place in group for node in place.nodes]
            made.replace([*gone, *gated.nodes], _adapter_silu_mul(gated, adapter), gated.nodes[-1])
            continue
        if len(group) > 1:
            gone = [node for place in group for node in place.nodes]
            made.replace(gone, _adapter_add_each(group, adapter), group[0].nodes[-1])
            continue
        (place,) = group
        norm = norm_behind(place, uses, norms)
        if norm is not None:
            made.replace([*place.nodes, norm.node], _adapter_skip_norm(place, norm, adapter), norm.node)
        else:
            made.replace(place.nodes, _adapter_add(place, adapter), place.nodes[-1])


def _places(slot: LinearSlot, place: int, uses: Uses) -> list[Place]:
    """A slot wherever it stands; none at all where one of its places has other nodes."""
    found = []
    for down in uses.readers(slot.a):
        chain = [down]
        for op in ("MatMul", "Add"):
            user = uses.only_reader(chain[-1].outputs[0])
            if user is None or user.op != op or user.domain or len(user.inputs) != 2:
                return []
            chain.append(user)
        _, up, add = chain
        if down.op != "MatMul" or down.domain or down.inputs[1] != slot.a or up.inputs != (down.outputs[0], slot.b):
            return []
        y = next(name for name in add.inputs if name != up.outputs[0])
        found.append(Place(slot, place, (down, up, add), y, down.inputs[0], add.outputs[0]))
    return found if uses.count(slot.b) == len(found) else []


def _norm_outputs(node: Node, uses: Uses) -> tuple[str, ...]:
    """A norm's outputs without the mean and the deviation where nothing reads them: a token takes less time (bundles of before)."""
    return tuple("" if number in (1, 2) and not uses.count(name) else name for number, name in enumerate(node.outputs))


def _low_rank_add(place: Place) -> Made:
    slot, offsets = place.slot, part_offsets(place.slot)
    attribute = [block(1, "offsets"), *(number(8, offset) for offset in offsets), number(20, _INTS)]
    inputs = (place.y, place.x, slot.a, slot.b, reach_name(slot))
    attributes = [block(5, attribute)] if len(offsets) > 1 else []
    return _operator(slot.name, "LowRankAdd", inputs, (place.result,), attributes)


def _adapter_add(place: Place, adapter: str) -> Made:
    inputs = (place.y, place.x, adapter, rows_name(adapter))
    return _operator(place.slot.name, "AdapterAdd", inputs, (place.result,), [_slot_number(place)])


def _adapter_add_each(group: list[Place], adapter: str) -> Made:
    inputs = (group[0].x, adapter, rows_name(adapter), *(place.y for place in group))
    slots = [block(1, "slots"), *(number(8, place.number) for place in group), number(20, _INTS)]
    name = "+".join(place.slot.name for place in group)
    return _operator(name, "AdapterAddEach", inputs, tuple(place.result for place in group), [block(5, slots)])


def _adapter_silu_mul(gated: Gated, adapter: str) -> Made:
    gate, up = gated.gate, gated.up
    inputs = (gate.x, adapter, rows_name(adapter), gate.y, up.y)
    slots = [block(1, "slots"), number(8, gate.number), number(8, up.number), number(20, _INTS)]
    return _operator(f"{gate.slot.name}*{up.slot.name}", "AdapterSiluMul", inputs, (gated.result,), [block(5, slots)])


def _adapter_skip_norm(place: Place, norm: Norm, adapter: str) -> Made:
    inputs = (place.y, place.x, adapter, rows_name(adapter), norm.skip, *norm.parameters)
    attributes = [_slot_number(place), block(5, norm.node.attributes["epsilon"])]
    if norm.centered:
        attributes.append(block(5, [block(1, "centered"), number(3, 1), number(20, _INT)]))
    return _operator(place.slot.name, "AdapterSkipNorm", inputs, (norm.result, norm.total), attributes)


def _slot_number(place: Place) -> bytes:
    return block(5, [block(1, "slot"), number(3, place.number), number(20, _INT)])


def _operator(slot: str, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], attributes: list[bytes]) -> Made:
    fields = [
        *(block(1, name) for name in inputs),
        *(block(2, name) for name in outputs),
        block(3, f"{slot}/{op}"),
        block(4, op),
        *attributes,
        block(7, DOMAIN),
    ]
    return Made(inputs, outputs, block(NODE, fields))


def _slot_input(name: str, dims: tuple[str | int, ...], default: tuple[int, ...], kind: int) -> list[bytes]:
    """A graph input with a default of no elements: a value and an initializer of that name."""
    shape = [block(1, [block(2, dim) if isinstance(dim, str) else number(1, dim)]) for dim in dims]
    tensor_type = block(1, [number(1, kind), block(2, shape)])
    tensor = [*(number(1, dim) for dim in default), number(2, kind), block(8, name), block(9, b"")]
    return [block(_INPUT, [block(1, name), block(2, [tensor_type])]), block(_INITIALIZER, tensor)]


def _weights(model: bytes, held: Iterable[Field]) -> dict[str, int]:
    """The data type of each initializer that no input stands for, by name."""
    inputs = {_text(model, field, 1) for field in held if field.number == _INPUT}
    weights = (read_weight(model, field) for field in held if field.number == _INITIALIZER)
    return {weight.name: weight.dtype for weight in weights if weight.name not in inputs}


def _first_text(model: bytes, field: Field) -> str:
    """The name of a graph's input or output."""
    return _text(model, field, 1)


def _text(model: bytes, field: Field, at: int) -> str:
    found = ""
    for inner in all_fields(model, field.first, field.end):
        if inner.number == at:
            found = text(model, inner)
    return found
