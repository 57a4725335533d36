"""The graph that float16 is planned on: constants are initializers, masks are no lower than float16 can say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from ..exact import compute_exactly

#: From so far below zero on a constant stands for minus infinity, as masks have it; above likewise.
ENDLESS = 1e8
#: What stands for it instead: as far from every score, and two of them still fit.
FAR = 1e4


class OpenSession(Protocol):
    """Opens a graph's file with ONNX Runtime."""

    def __call__(self, model: Path, /) -> Any:
        """An ``onnxruntime.InferenceSession``."""


def prepare(source: Path, target: Path) -> None:
    """Write ``source`` to ``target``, in the same folder, in a form in which each float can be told and named.

    Constants become initializers, nodes get names, and a mask's lowest float32 becomes ``-FAR``: float16 would make minus infinity
    of it, and zero times that is no number. The weights stay in ``source``'s file.

    Raises:
        ValueError: The two are not in one folder.
    """
    if source.parent != target.parent:
        raise ValueError(f"{target} must stand beside {source}, whose weights it names")
    model = ir.load(source)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _name_nodes(model.graph)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size <= SMALL:
            _bound(value, tensor.numpy())
    ir.save(model, target)


#: Constants of more numbers than this are weights, which are never masks.
SMALL = 1024


def _name_nodes(graph: ir.Graph) -> None:
    taken: set[str] = set()
    for place, node in enumerate(graph):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}#{place}"
        taken.add(node.name)


def _bound(value: ir.Value, numbers: np.ndarray) -> None:
    endless = np.abs(numbers) >= ENDLESS
    if endless.any():
        bounded = np.where(endless, np.sign(numbers) * np.float32(FAR), numbers).astype(np.float32)
        value.const_value = ir.tensor(bounded, name=value.name)


def float_values(prepared: Path, open_session: OpenSession) -> frozenset[str]:
    """The float32 values of a prepared graph, without those inside control flow: ONNX Runtime infers every type.

    Args:
        prepared: What :func:`prepare` wrote.
        open_session: Opens a graph.
    """
    model = ir.load(prepared)
    graph = model.graph
    there = {value.name for value in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value.name and value.name not in there:
                # What a file says may be wrong for a value that nobody looked at.
                value.type = value.shape = None
                graph.outputs.append(value)
    file = prepared.with_name(f"{prepared.stem}_typed.onnx")
    ir.save(model, file)
    try:
        session = open_session(file)
        found = {value.name for value in session.get_outputs() if value.type == "tensor(float)"}
        found |= {value.name for value in session.get_inputs() if value.type == "tensor(float)"}
        found |= {value.name for value in session.get_overridable_initializers() if value.type == "tensor(float)"}
    finally:
        file.unlink(missing_ok=True)
    return frozenset(found)


def write_exact(source: Path, target: Path) -> None:
    """Write a prepared graph whose kernels keep activations in float32 (:func:`~edgepeft.quantize.exact.compute_exactly`)."""
    model = ir.load(source)
    compute_exactly(model)
    ir.save(model, target)
