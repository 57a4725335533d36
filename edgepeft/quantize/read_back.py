"""The rounded weights of a variant as numbers: what training sees of a base that ships in few bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph.quantized_weights import quantized_weights
from .nbits import ADDED_BIAS, CORRECTION, OFFSETS

_INT8, _SCALES = "_int8", "_scales"
_ROUNDED_BIAS = "_rounded"


@dataclass(frozen=True)
class ReadBack:
    """A rounded weight: ``numbers`` float32 ``[out, in]`` (of a table ``[rows, width]``), correction and offsets folded in.

    ``bias`` ``[out]`` is what rounding adds to the layer's output, or, where ``whole_bias`` holds, that and the layer's own bias
    together.
    """

    name: str
    numbers: np.ndarray
    bias: np.ndarray | None = None
    whole_bias: bool = False


def read_back(model: ir.Model) -> Iterator[ReadBack]:
    """Every weight that recipes of edgepeft rounded in a graph, one at a time."""
    nodes = {node.name: node for node in model.graph.all_nodes() if node.name}
    for name, blocks in quantized_weights(model).items():
        numbers = blocks.read()
        bias: np.ndarray | None = None
        whole = False
        for user in blocks.users:
            node = nodes[user]
            if node.op_type != "MatMulNBits":
                continue
            stem = name.rpartition("_q")[0]
            numbers = numbers + _correction(model.graph, stem) + _offsets(model.graph, stem, numbers.shape[1])
            stored = node.inputs[5] if len(node.inputs) > 5 else None
            if stored is None or not (stored.name or "").endswith((ADDED_BIAS, _ROUNDED_BIAS)):
                continue
            whole = (stored.name or "").endswith(_ROUNDED_BIAS)
            bias = _numbers(stored).astype(np.float32)
        yield ReadBack(name, numbers, bias, whole)
    yield from _int8(model.graph)


def _correction(graph: ir.Graph, name: str) -> np.ndarray | float:
    """What a low-rank correction adds to the weight ``[out, in]``."""
    first, second = (graph.initializers.get(f"{name}{part}") for part in CORRECTION)
    if first is None or second is None:
        return 0.0
    product: np.ndarray = (_numbers(first).astype(np.float32) @ _numbers(second).astype(np.float32)).T
    return product


def _offsets(graph: ir.Graph, name: str, columns: int) -> np.ndarray | float:
    """What the offsets of blocks add to the weight ``[out, in]``."""
    stored = graph.initializers.get(f"{name}{OFFSETS}")
    if stored is None:
        return 0.0
    offsets = _numbers(stored).astype(np.float32).T
    return np.repeat(offsets, columns // offsets.shape[1], axis=1)


def _int8(graph: ir.Graph) -> Iterator[ReadBack]:
    """Weights in int8 with a scale for each output channel, or for each row of a table."""
    for name, value in graph.initializers.items():
        if not name.endswith(_INT8) or value.const_value is None:
            continue
        stem = name.removesuffix(_INT8)
        column = graph.initializers.get(f"{stem}{_SCALES}_column")
        scales = graph.initializers.get(f"{stem}{_SCALES}")
        numbers = _numbers(value).astype(np.float32)
        if column is not None:  # a table, by rows; a tied head turns the same bytes
            yield ReadBack(name, numbers * _numbers(column).reshape(-1, 1))
        elif scales is not None:
            yield ReadBack(name, numbers.T * _numbers(scales).reshape(-1, 1))


def _numbers(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
