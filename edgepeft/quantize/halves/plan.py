"""Which values of a graph become float16, and which nodes stay in float32 as islands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...bundle.cache_names import is_past, is_present
from .operators import Halvable
from .prepare import SMALL

#: The largest float16, and the smallest that has all of its bits.
TOP, NORMAL = 65_504.0, 2.0**-14
#: Measured numbers must fit so many times over: other texts, and adapters that come later, go beyond what was run.
MARGIN = 4.0
#: Operators that make large numbers of small ones.
_AMPLIFY = frozenset({"Sqrt", "Reciprocal", "Div", "Log", "Pow"})


@dataclass(frozen=True)
class HalfPlan:
    """What of a prepared graph becomes float16.

    Args:
        values: Names of the values that do.
        nodes: Names of the nodes that compute in it.
        islands: Why each other node with floats stays in float32, by its name.
        total: How many nodes have floats.
        cache: Whether the key/value cache that goes in and out is float16.
    """

    values: frozenset[str]
    nodes: frozenset[str]
    islands: Mapping[str, str]
    total: int
    cache: bool

    @property
    def share(self) -> float:
        """The part of the nodes with floats that stays in float32, 0 … 1."""
        return len(self.islands) / max(1, self.total)


def plan_halves(
    graph: ir.Graph, floats: Collection[str], largest: Mapping[str, float], slots: Mapping[str, float], *, cache: bool
) -> HalfPlan:
    """Choose what becomes float16.

    A node stays in float32 where ONNX Runtime has no float16 for it; where it computes from whole numbers alone (positions,
    lengths, masks), since float16 counts to 2,048 only; and where a number that it reads or writes was measured to be within
    ``MARGIN`` of the largest float16, or too small for it and about to be amplified.

    Args:
        graph: A prepared graph.
        floats: Its float32 values.
        largest: What was measured: the largest magnitude of each value.
        slots: The largest magnitude that adapters, and the graph's defaults, hold for each slot.
        cache: Whether the cache may be float16.
    """
    opsets = dict(graph.opset_imports)
    counted = _counted(graph, floats)
    unsafe = _unsafe(graph, largest, slots)
    nodes: set[str] = set()
    islands: dict[str, str] = {}
    values: set[str] = set()
    total = 0
    for node in graph:
        if not _has_floats(node, floats):
            continue
        total += 1
        allowed = Halvable(node, opsets)
        reason = _reason(node, floats, allowed, counted, unsafe)
        if reason:
            islands[node.name or ""] = reason
            continue
        nodes.add(node.name or "")
        values |= {v.name or "" for i, v in enumerate(node.outputs) if v.name in floats and allowed.output(i)}
    presents = [v.name or "" for v in graph.outputs if v.name and is_present(v.name)]
    halved = cache and bool(presents) and all(name in values for name in presents)
    if halved:
        values |= {v.name for v in graph.inputs if v.name and is_past(v.name) and v.name in floats}
    return HalfPlan(frozenset(values), frozenset(nodes), islands, total, halved)


def _has_floats(node: ir.Node, floats: Collection[str]) -> bool:
    return any(is_float(value, floats) for value in (*node.inputs, *node.outputs) if value is not None)


def is_float(value: ir.Value, floats: Collection[str]) -> bool:
    """Whether a value of the main graph, or one of its initializers, is float32."""
    tensor = value.const_value if value.is_initializer() else None
    return value.name in floats or (tensor is not None and tensor.dtype == ir.DataType.FLOAT)


def _reason(
    node: ir.Node, floats: Collection[str], allowed: Halvable, counted: Collection[str], unsafe: Mapping[str, str]
) -> str:
    """Why a node stays in float32; empty where it need not."""
    inputs = [(i, v) for i, v in enumerate(node.inputs) if v is not None and is_float(v, floats)]
    outputs = [(i, v) for i, v in enumerate(node.outputs) if v.name in floats]
    halved = [v for i, v in inputs if allowed.input(i)] + [v for i, v in outputs if allowed.output(i)]
    if not halved:
        return f"{node.op_type} has no float16"
    if outputs and all(v.name in counted for _, v in outputs):
        return "computes from whole numbers alone"
    # A cast changes the type itself: only what it writes must fit, and the other way around at the graph's end.
    return next((unsafe[v.name] for v in halved if v.name is not None and v.name in unsafe), "")


def _counted(graph: ir.Graph, floats: Collection[str]) -> set[str]:
    """Floats that are computed from whole numbers, truth values and small constants alone."""
    found: set[str] = set()
    for node in graph:
        outputs = [value.name or "" for value in node.outputs if value.name in floats]
        if not outputs:
            continue
        read = [value for value in node.inputs if value is not None and is_float(value, floats)]
        begun = not read and node.op_type in {"Cast", "ConstantOfShape", "Range"} and not _widens(node)
        begun |= node.op_type == "Where" and all(_small(value) for value in read)
        goes_on = any(value.name in found for value in read) and all(
            value.name in found or _small(value) for value in read
        )
        if begun or goes_on:
            found.update(outputs)
    return found


def _widens(node: ir.Node) -> bool:
    """Whether a Cast reads a weight that is stored in float16, as corrections of few bits are."""
    tensor = node.inputs[0].const_value if node.inputs and node.inputs[0] is not None else None
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT16


def _small(value: ir.Value) -> bool:
    tensor = value.const_value
    return value.is_initializer() and not value.is_graph_input() and tensor is not None and tensor.size <= SMALL


def _unsafe(graph: ir.Graph, largest: Mapping[str, float], slots: Mapping[str, float]) -> dict[str, str]:
    """Values that float16 does not hold, with the reason."""
    found: dict[str, str] = {}
    for name, size in {**largest, **slots}.items():
        if size * MARGIN > TOP:
            found[name] = f"{name} reaches {size:.4g}, and float16 ends at {TOP:.0f}"
    tiny = {name for name, size in largest.items() if 0 < size < NORMAL}
    for node in graph:
        for value in node.outputs:
            if value.name in tiny and _amplified(value):
                found[value.name] = f"{value.name} stays below {largest[value.name]:.2g} and is amplified"
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.is_graph_input() or not tensor.size:
            continue
        numbers = tensor.numpy()
        top = float(np.abs(numbers).max())
        if top > TOP:
            found[value.name or ""] = f"{value.name} holds {top:.4g}, and float16 ends at {TOP:.0f}"
        elif tensor.size == 1 and top and not np.float16(top):
            found[value.name or ""] = f"{value.name} is {top:.2g}, which is 0 in float16"
    return found


def _amplified(value: ir.Value, steps: int = 3) -> bool:
    """Whether a value reaches an operator that makes large numbers of small ones within so many nodes."""
    for user, _ in value.uses():
        if user.op_type in _AMPLIFY or (steps > 1 and any(_amplified(each, steps - 1) for each in user.outputs)):
            return True
    return False
