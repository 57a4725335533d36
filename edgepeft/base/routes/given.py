"""A base that was exported to ONNX elsewhere: given as a file, matched by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftSubgraphInitializersToMainGraphPass, ShapeInferencePass

from ...adapters.layout import as_linear
from ...errors import CaptureError
from ...graph.locate.by_content import float_initializers, locate
from ...graph.passes.fold_transposes import FoldTransposes
from ...graph.passes.name_dimensions import NameDimensions
from ..captured import Captured
from ..load import Loaded
from ..parity import parity
from ..tied import untie


def read_graph(path: Path) -> ir.Model:
    """The ONNX file at ``path`` with its weights in memory; raises :class:`CaptureError` where it cannot be read.

    Functions are inlined, and weights that the bodies of control flow hold are the main graph's: there passes, slots and
    the search by content look.
    """
    if not path.is_file():
        raise CaptureError(f"no ONNX file at {path}")
    try:
        graph = ir.load(path)
        if graph.functions:
            InlinePass()(graph)
        LiftSubgraphInitializersToMainGraphPass()(graph)
        for value in graph.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    except Exception as error:  # protobuf and onnx_ir raise many types on a damaged file
        raise CaptureError(f"{path} is not a readable ONNX model: {error}") from error
    return graph


def open_existing(path: Path, loaded: Loaded) -> Captured:
    """The ONNX file at ``path`` as a capture of ``loaded``; raises :class:`CaptureError` where it is not that base.

    ONNX Runtime must compute what PyTorch does, and most weights must be found by content: a file of other weights or
    one that is already quantized is refused.
    """
    graph = read_graph(path)
    FoldTransposes()(graph)
    NameDimensions(loaded.inputs)(graph)
    # Slots must know which activations are 2-D, and many exporters declare no shapes inside the graph.
    graph = ShapeInferencePass()(graph).model
    accepted = {value.name for value in graph.graph.inputs if value.name not in graph.graph.initializers}
    unknown = accepted - set(loaded.input_names)
    if unknown:
        raise CaptureError(
            f"{path} has inputs that {loaded.source} for {loaded.task} does not: {', '.join(map(str, unknown))}"
        )
    own = {n: np.ascontiguousarray(p.detach().float().numpy()).copy() for n, p in loaded.model.named_parameters()}
    weights = as_linear(loaded.model, own)
    located = locate(graph, weights)
    missing = [
        name for name, array in weights.items() if array.ndim == 2 and name not in loaded.fresh and not located[name]
    ]
    matrices = sum(array.ndim == 2 for array in weights.values())
    if len(missing) > matrices // 2:
        raise CaptureError(
            f"{path} does not hold the weights of {loaded.source}: {len(missing)} of {matrices} matrices were not found, the "
            f"first is {missing[0]} {weights[missing[0]].shape}. It was exported from another checkpoint, or is quantized already "
            f"(it has {len(float_initializers(graph))} float initializers)."
        )
    difference = parity(graph, loaded)
    locations, weights = untie(loaded.model, graph, located, weights)
    return Captured(graph=graph, locations=locations, weights=weights, parity=difference)
