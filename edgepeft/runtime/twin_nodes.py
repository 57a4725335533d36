"""A graph's nodes as a twin needs them: their names, who makes and who reads what, and an order that follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..bundle.protobuf import VARINT, Buffer, Field, all_fields, block, varint
from ..bundle.slots import LinearSlot

#: The field of ModelProto that holds the graph, and that of GraphProto that holds a node.
GRAPH, NODE = 7, 1
_INPUT, _OUTPUT, _OP, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of NodeProto
_NAME, _WHOLE, _SUBGRAPH, _SUBGRAPHS = 1, 3, 6, 11  # of AttributeProto


@dataclass(frozen=True)
class Node:
    """What is known of a node: where it lies, the names around it, its attributes as they are written, whether it has subgraphs."""

    field: Field
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    op: str
    domain: str
    attributes: Mapping[str, bytes]
    nested: bool


@dataclass(frozen=True)
class Place:
    """A slot where it stands in a graph: ``result = y + (x A) B``. ``number`` is the slot's in an adapter's table."""

    slot: LinearSlot
    number: int
    nodes: tuple[Node, Node, Node]
    y: str
    x: str
    result: str


def read_graph(model: bytes) -> tuple[list[Field], Field, list[Field]]:
    """The fields of a model, the one of them that is its graph, and the fields of that.

    Raises :class:`IndexError` where the bytes hold no graph, or several.
    """
    top = list(all_fields(model, 0, len(model)))
    graphs = [field for field in top if field.number == GRAPH]
    if len(graphs) != 1:
        raise IndexError(f"it holds {len(graphs)} graphs")
    (graph,) = graphs
    return top, graph, list(all_fields(model, graph.first, graph.end))


def read_node(model: Buffer, field: Field) -> Node:
    """The node that a field of the graph holds."""
    texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OP: [""], _DOMAIN: [""]}
    attributes, nested = dict[str, bytes](), False
    for inner in all_fields(model, field.first, field.end):
        if inner.number in texts:
            texts[inner.number].append(text(model, inner))
        elif inner.number == _ATTRIBUTE:
            for held in all_fields(model, inner.first, inner.end):
                if held.number == _NAME:
                    attributes[text(model, held)] = bytes(model[inner.first : inner.end])
                nested |= held.number in (_SUBGRAPH, _SUBGRAPHS)
    inputs, outputs = tuple(texts[_INPUT]), tuple(texts[_OUTPUT])
    return Node(field, inputs, outputs, texts[_OP][-1], texts[_DOMAIN][-1], attributes, nested)


def text(model: Buffer, field: Field) -> str:
    """The text that a field holds."""
    return bytes(model[field.first : field.end]).decode("utf-8", "replace")


def whole_number(attribute: bytes) -> int | None:
    """The whole number that an attribute of :attr:`Node.attributes` holds; ``None``: it holds none."""
    for field in all_fields(attribute, 0, len(attribute)):
        if field.number == _WHOLE and field.kind == VARINT:
            return varint(attribute, field.first, field.end)[0]
    return None


class Uses:
    """Who makes and who reads each value of a graph."""

    def __init__(self, nodes: Sequence[Node], outputs: Iterable[str]) -> None:
        self._counts = Counter(name for node in nodes for name in node.inputs)
        self._counts.update(outputs)
        self._readers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        self._maker = {name: node for node in nodes for name in node.outputs if name}

    def count(self, name: str) -> int:
        """How often a value is read, as an output of the graph too."""
        return self._counts[name]

    def readers(self, name: str) -> list[Node]:
        """The nodes that read a value."""
        return self._readers.get(name, [])

    def only_reader(self, name: str) -> Node | None:
        """The one node that reads a value; ``None`` where there are others, or it is an output of the graph."""
        return self._readers[name][0] if self._counts[name] == len(self._readers.get(name, ())) == 1 else None

    def maker(self, name: str) -> Node | None:
        """The node that makes a value; ``None``: it is an input or a weight of the graph."""
        return self._maker.get(name)

    def between(self, name: str, source: str) -> list[Node]:
        """The nodes that lead to a value, not looking behind ``source``."""
        found: dict[int, Node] = {}
        waiting = [name]
        while waiting:
            value = waiting.pop()
            node = self._maker.get(value)
            if value == source or node is None or node.field.start in found:
                continue
            found[node.field.start] = node
            waiting += node.inputs
        return list(found.values())


def in_order(inputs: Sequence[Sequence[str]], outputs: Sequence[Sequence[str]]) -> list[int]:
    """Numbers of nodes, each behind those that make its inputs, and otherwise as they came.

    Args:
        inputs: The names that each node reads.
        outputs: The names that each node makes. No value may lead to itself.
    """
    maker = {name: number for number, names in enumerate(outputs) for name in names if name}
    order: list[int] = []
    begun, done = set[int](), set[int]()
    for first in range(len(inputs)):
        waiting = [first]
        while waiting:
            number = waiting[-1]
            if number in begun:
                waiting.pop()
                if number not in done:
                    done.add(number)
                    order.append(number)
                continue
            begun.add(number)
            waiting += [maker[name] for name in reversed(inputs[number]) if name in maker and maker[name] not in begun]
    return order


@dataclass(frozen=True)
class Made:
    """A node of an operator of ours: the names around it, and how it is written."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    content: bytes


class NodeList:
    """A graph's nodes, some of which others take the place of."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._gone = set[int]()
        self._made: dict[int, Made] = {}

    def replace(self, gone: Iterable[Node], made: Made, where: Node) -> None:
        """One of ours in place of these, where one of them stood."""
        for node in gone:
            self._gone.add(node.field.start)
            self._made.pop(node.field.start, None)
        self._made[where.field.start] = made

    def shorten(self, node: Node, outputs: tuple[str, ...], model: bytes) -> None:
        """The same node with other names of its outputs, some of them empty, where it stays."""
        if outputs != node.outputs:
            held = all_fields(model, node.field.first, node.field.end)
            rest = [model[inner.start : inner.end] for inner in held if inner.number != _OUTPUT]
            names = [block(_OUTPUT, name) for name in outputs]
            self._made[node.field.start] = Made(node.inputs, outputs, block(NODE, [*rest, *names]))

    def written(self, model: bytes) -> list[bytes]:
        """All of them, each behind those that make its inputs."""
        kept: list[Made] = []
        for node in self._nodes:
            field = node.field
            made = self._made.get(field.start)
            if made is not None:
                kept.append(made)
            elif field.start not in self._gone:
                kept.append(Made(node.inputs, node.outputs, model[field.start : field.end]))
        order = in_order([node.inputs for node in kept], [node.outputs for node in kept])
        return [kept[place].content for place in order]
