"""Which quantized matrices of a graph become ``BlockMatMul``, which reads weights where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..bundle.protobuf import block, number
from .twin_joins import CONTRIB
from .twin_nodes import NODE, Made, Node, NodeList, Uses, whole_number

_BLOCK = 32
_BITS = (4, 8)
#: The activations are rounded to 8 bits, as ``BlockMatMul`` does.
_ROUNDED = 4
_FLOAT, _FLOAT16 = 1, 10  # of TensorProto.DataType
_INT = 2  # of AttributeProto.AttributeType


@dataclass(frozen=True)
class Matrix:
    """A ``MatMulNBits`` that ``BlockMatMul`` can take the place of; ``cast`` widens scales that lie in the file as float16."""

    node: Node
    scales: str
    cast: Node | None
    numbers: Mapping[str, int]


def matrices(nodes: Sequence[Node], uses: Uses, weights: Mapping[str, int]) -> list[Matrix]:
    """The matrices of 4 or 8 bits in blocks of 32 over float32 activations that are rounded to 8 bits.

    Args:
        nodes: The graph's nodes.
        uses: Who makes and reads what.
        weights: The data type of each initializer, by name.
    """
    found = []
    for node in nodes:
        if node.domain != CONTRIB or node.op != "MatMulNBits":
            continue
        numbers = {name: value for name, held in node.attributes.items() if (value := whole_number(held)) is not None}
        known = numbers.get("block_size") == _BLOCK and numbers.get("bits", 4) in _BITS
        inputs = (*node.inputs, "", "", "")[:6]
        read = [name for name in (inputs[1], *inputs[3:]) if name]
        if (
            not known
            or numbers.get("accuracy_level") != _ROUNDED
            or inputs[4]
            or not all(name in weights for name in read)
        ):
            continue
        cast = uses.maker(inputs[2])
        if weights.get(inputs[2]) == _FLOAT:
            found.append(Matrix(node, inputs[2], None, numbers))
        elif cast is not None and _widens(cast, weights):
            found.append(Matrix(node, cast.inputs[0], cast, numbers))
    return found


def replace_matrices(made: NodeList, found: Sequence[Matrix], uses: Uses, domain: str) -> None:
    """``BlockMatMul`` in their places, over scales as they lie in the file; a Cast of scales that nothing else reads goes."""
    for matrix in found:
        node = matrix.node
        x, weights, _, zeros, _, bias = (*node.inputs, "", "", "")[:6]
        more = (zeros, bias) if bias else (zeros,) if zeros else ()
        inputs = (x, weights, matrix.scales, *more)
        numbers = {"N": matrix.numbers["N"], "K": matrix.numbers["K"], "bits": matrix.numbers.get("bits", 4)}
        fields = [
            *(block(1, name) for name in inputs),
            *(block(2, name) for name in node.outputs),
            block(3, f"{node.outputs[0]}/BlockMatMul"),
            block(4, "BlockMatMul"),
            *(block(5, [block(1, name), number(3, value), number(20, _INT)]) for name, value in numbers.items()),
            block(7, domain),
        ]
        gone = [node, matrix.cast] if matrix.cast is not None and uses.count(node.inputs[2]) == 1 else [node]
        made.replace(gone, Made(inputs, node.outputs, block(NODE, fields)), node)


def _widens(cast: Node, weights: Mapping[str, int]) -> bool:
    """Whether a node casts float16 numbers of the graph's own to float32."""
    to = whole_number(cast.attributes.get("to", b""))
    return cast.op == "Cast" and not cast.domain and to == _FLOAT and weights.get(cast.inputs[0]) == _FLOAT16
