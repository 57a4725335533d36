"""Nodes of a graph made ready to be cut: each weight is read by its own node, where it lies, and in slices where it is large."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..bundle.protobuf import block, number
from .stored_weights import StoredWeight
from .twin_nodes import NODE, whole_number

#: Rows of a slice are a multiple of this, as kernels take columns together.
_TOGETHER = 32
#: The input of MatMulNBits that orders the weight's columns, and holds no rows.
_ORDER = 4
_INPUT, _OUTPUT, _OP, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TYPE, _INT = 1, 3, 20, 2  # of AttributeProto


@dataclass(frozen=True)
class PartNode:
    """A node as it is written, with what is known of it; ``inner`` is what nodes in its branches read.

    ``content`` may hold nodes before it that widen its weights, whose inputs ``widened`` names.
    """

    content: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    op: str
    domain: str
    attributes: Mapping[str, bytes] = field(default_factory=dict)
    inner: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of all values that it needs."""
        return tuple(dict.fromkeys(name for name in (*self.inputs, *self.inner, *self.widened) if name))


def ready(
    nodes: Sequence[PartNode], weights: dict[str, StoredWeight], outputs: Collection[str], budget: int
) -> list[PartNode]:
    """The nodes of a graph, to be cut where weights are read.

    A weight that a Reshape gives another shape is read under that shape from its place: ONNX Runtime copies what a Reshape gives,
    which of an embedding is as large as the head that it is tied to. A Cast that widens a weight (scales in float16) goes along
    with each node that reads it: ONNX Runtime packs constants, not what another part computes. A MatMulNBits of more than
    ``budget`` bytes of weights is made of several over slices of rows, each of which computes some of its columns.

    Args:
        nodes: All nodes in their order.
        weights: The graph's constant initializers by name. New ones are put in.
        outputs: Names of the graph's outputs.
        budget: Bytes.
    """
    kept: list[PartNode] = []
    casts: dict[str, PartNode] = {}
    branches = {name for node in nodes for name in node.inner}
    for node in nodes:
        made = node.outputs[0]
        if node.domain == "" and made not in outputs and node.inputs and node.inputs[0] in weights:
            if node.op == "Reshape" and _view(node, weights):
                continue
            if node.op == "Cast" and made not in branches:
                casts[made] = node
                continue
        kept += _sliced(node, weights, casts, budget) or [_with_casts(node, casts)]
    return kept


def _view(node: PartNode, weights: dict[str, StoredWeight]) -> bool:
    """Put in the weight that a Reshape gives another shape, where it lies in a file; whether it does."""
    weight, shape = weights[node.inputs[0]], weights.get(node.inputs[1])
    asked = None if shape is None else shape.whole_numbers()
    if weight.place is None or asked is None:
        return False
    dims = [weight.dims[place] if dim == 0 else dim for place, dim in enumerate(asked)]
    known = math.prod(dim for dim in dims if dim != -1)
    dims = [math.prod(weight.dims) // known if dim == -1 else dim for dim in dims]
    weights[node.outputs[0]] = weight.view(node.outputs[0], dims)
    return True


def _with_casts(node: PartNode, casts: Mapping[str, PartNode]) -> PartNode:
    """The node behind the Casts that widen what it reads, each of which makes a value of this node's own."""
    own = {name: f"{name}/{node.outputs[0]}" for name in node.inputs if name in casts}
    if not own:
        return node
    before = [_written(replace(casts[name], outputs=(as_name,))) for name, as_name in own.items()]
    written = _written(replace(node, inputs=tuple(own.get(name, name) for name in node.inputs)))
    return replace(
        node,
        content=b"".join([*before, written]),
        inputs=tuple(name for name in node.inputs if name not in own),
        widened=tuple(casts[name].inputs[0] for name in own),
    )


def _sliced(
    node: PartNode, weights: dict[str, StoredWeight], casts: Mapping[str, PartNode], budget: int
) -> list[PartNode]:
    """A MatMulNBits over slices of its rows, and what joins them; nothing for a node that stays whole."""
    if (node.op, node.domain) != ("MatMulNBits", "com.microsoft") or any(node.inputs[_ORDER : _ORDER + 1]):
        return []
    sources = [casts[name].inputs[0] if name in casts else name for name in node.inputs[1:]]
    held = [weights.get(name) for name in sources]
    rows = whole_number(node.attributes["N"])
    assert rows is not None, "N is a whole number, by the operator's schema"
    size = sum(weight.nbytes for weight in held if weight is not None)
    if size <= budget or not all(
        not name or (weight is not None and weight.rows_of(rows)) for name, weight in zip(sources, held, strict=True)
    ):
        return []
    step = _TOGETHER * math.ceil(rows / math.ceil(size / budget) / _TOGETHER)
    made, names = [], []
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        inputs, own = [node.inputs[0]], dict[str, PartNode]()
        for name, weight in zip(node.inputs[1:], held, strict=True):
            if weight is None:
                inputs.append("")
                continue
            part = weight.rows(start, stop, rows, f"{weight.name}/{start}")
            weights[part.name] = part
            if name in casts:
                inputs.append(f"{name}/{start}")
                own[inputs[-1]] = replace(casts[name], inputs=(part.name,))
            else:
                inputs.append(part.name)
        names.append(f"{node.outputs[0]}/{start}")
        count = block(_ATTRIBUTE_NAME, "N") + number(_ATTRIBUTE_INT, stop - start) + number(_ATTRIBUTE_TYPE, _INT)
        slice_ = replace(node, inputs=tuple(inputs), outputs=(names[-1],), attributes={**node.attributes, "N": count})
        made.append(_with_casts(replace(slice_, content=_written(slice_)), own))
    last = block(_ATTRIBUTE_NAME, "axis") + number(_ATTRIBUTE_INT, (1 << 64) - 1) + number(_ATTRIBUTE_TYPE, _INT)
    joined = PartNode(b"", tuple(names), node.outputs, "Concat", "", {"axis": last})
    return [*made, replace(joined, content=_written(joined))]


def _written(node: PartNode) -> bytes:
    """A node without branches, as a field of its graph."""
    return block(
        NODE,
        [
            *(block(_INPUT, name) for name in node.inputs),
            *(block(_OUTPUT, name) for name in node.outputs),
            block(_OP, node.op),
            *(block(_ATTRIBUTE, content) for content in node.attributes.values()),
            block(_DOMAIN, node.domain),
        ],
    )
