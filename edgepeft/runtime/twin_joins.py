"""Which slots of a graph become one node with others, or with what stands behind them: fewer nodes for a token to pass."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..bundle.protobuf import all_fields
from .twin_nodes import Node, Place, Uses

#: Slots of one node: as many as may take their base's memory, ``kShared`` of adapter_add_each.hpp.
MOST_TOGETHER = 8
#: How far apart in the file, in nodes, slots of one node lie at most. What every layer makes of the same states (an encoder's, say)
#: stays apart: all of it would wait in memory.
_FAR = 40
CONTRIB = "com.microsoft"
SKIP_LAYER_NORM = "SkipLayerNormalization"
#: The norms that a slot can be joined with.
NORMS = ("SkipSimplifiedLayerNormalization", SKIP_LAYER_NORM)
SIGMOID, QUICK_GELU = "Sigmoid", "QuickGelu"
#: How ``silu(gate) = gate / (1 + exp(-gate))`` stands in a graph: ``gate * Sigmoid(gate)``, or ``QuickGelu`` whose ``alpha`` is 1.
SILUS = (SIGMOID, QUICK_GELU)
_FLOAT = 2  # of AttributeProto


@dataclass(frozen=True)
class Norm:
    """The node behind a slot, which adds ``skip`` (and a bias) and makes a norm: its parameters, its results, the sum's name."""

    node: Node
    skip: str
    parameters: tuple[str, ...]
    centered: bool
    result: str
    total: str


@dataclass(frozen=True)
class Gated:
    """The nodes behind a gate's slot and another one, which make ``silu(gate) * up``."""

    gate: Place
    up: Place
    nodes: tuple[Node, ...]
    result: str


def together(places: Sequence[Place], uses: Uses, order: dict[int, int]) -> list[list[Place]]:
    """Places in groups, each of one or more that read the same activations.

    Args:
        places: Where slots stand, in the file's order.
        uses: Who makes and reads what.
        order: The number of each node by where it begins in the file.
    """
    groups: list[list[Place]] = []
    open_groups: dict[str, list[Place]] = {}
    for place in places:
        group = open_groups.get(place.x)
        if group is not None and _joins(group, place, uses, order):
            group.append(place)
            continue
        open_groups[place.x] = group = [place]
        groups.append(group)
    return groups


def _joins(group: list[Place], place: Place, uses: Uses, order: dict[int, int]) -> bool:
    if len(group) == MOST_TOGETHER or any(place.number == other.number for other in group):
        return False
    if order[place.nodes[0].field.start] - order[group[-1].nodes[0].field.start] > _FAR:
        return False
    # What leads to y moves before the group's node: it must not read what that makes, and what subgraphs read is not known here.
    leading = uses.between(place.y, place.x)
    results = {other.result for other in group}
    return not any(node.nested or results & set(node.inputs) for node in leading)


def norm_behind(place: Place, uses: Uses, norms: Collection[str]) -> Norm | None:
    """The norm that alone reads a slot's result; ``None`` where another node does, or it has outputs that the kernels do not make.

    Args:
        place: Where the slot stands.
        uses: Who makes and reads what.
        norms: The operators that may be joined, some of :data:`NORMS`.
    """
    node = uses.only_reader(place.result)
    if node is None or node.domain != CONTRIB or node.op not in norms or len(node.inputs) < 3:
        return None
    if "epsilon" not in node.attributes or place.result not in node.inputs[:2]:
        return None
    if any(name and uses.count(name) for name in node.outputs[1:3]):
        return None
    centered = node.op == SKIP_LAYER_NORM
    gamma, beta, bias, *_ = (*node.inputs[2:], "", "")
    if not centered and any(node.inputs[3:]):  # a bias, which ONNX Runtime's kernel on CPUs does not read there
        return None
    skip = next(name for name in node.inputs[:2] if name != place.result)
    total = node.outputs[3] if len(node.outputs) > 3 and node.outputs[3] else f"{place.result}.total"
    parameters = (gamma, beta, bias) if bias else (gamma, beta) if beta else (gamma,)
    return Norm(node, skip, parameters, centered, node.outputs[0], total)


def gated_behind(group: Sequence[Place], uses: Uses, silus: Collection[str]) -> Gated | None:
    """What makes ``silu(gate) * up`` of two slots' results and alone reads them; ``None`` where other nodes do.

    Args:
        group: Slots that read the same activations.
        uses: Who makes and reads what.
        silus: The forms that may be joined, some of :data:`SILUS`.
    """
    if len(group) != 2:
        return None
    for gate, up in (group, group[::-1]):
        found = _silu(gate.result, uses)
        if found is None or found[0] not in silus:
            continue
        _, nodes = found
        activated = nodes[-1].outputs[0]
        product = uses.only_reader(activated)
        if product and _is_product(product, activated, up.result) and uses.only_reader(up.result) is product:
            return Gated(gate, up, (*nodes, product), product.outputs[0])
    return None


def _silu(name: str, uses: Uses) -> tuple[str, tuple[Node, ...]] | None:
    """How the silu of a value stands in a graph, and its nodes, the last of which makes it; nothing else reads the value."""
    only = uses.only_reader(name)
    if only is not None and only.domain == CONTRIB and only.op == QUICK_GELU:
        return (QUICK_GELU, (only,)) if _alpha(only) == 1.0 else None
    readers = uses.readers(name)
    sigmoid = next((node for node in readers if node.op == SIGMOID and not node.domain), None)
    if sigmoid is None or not uses.count(name) == len(readers) == 2:
        return None
    product = uses.only_reader(sigmoid.outputs[0])
    return (SIGMOID, (sigmoid, product)) if product and _is_product(product, name, sigmoid.outputs[0]) else None


def _is_product(node: Node, *inputs: str) -> bool:
    return node.op == "Mul" and not node.domain and sorted(node.inputs) == sorted(inputs)


def _alpha(node: Node) -> float | None:
    """What a ``QuickGelu`` multiplies by inside of its logistic function; ``None`` where it says nothing, which is not 1."""
    content = node.attributes.get("alpha", b"")
    for held in all_fields(content, 0, len(content)):
        if held.number == _FLOAT:
            (value,) = struct.unpack("<f", content[held.first : held.end])
            return float(value)
    return None
