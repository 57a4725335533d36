"""Capture by tracing with transformers' own exporter, for anything that torch.export takes."""

from __future__ import annotations

import contextlib
import io
import logging as pylogging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from ...errors import CaptureError
from ...graph.locate.by_content import Location
from ...graph.passes.drop_origins import DropOrigins
from ...graph.passes.name_dimensions import NameDimensions
from ...graph.passes.unpack_heads import UnpackHeads
from ..captured import Captured
from ..load import Loaded, quiet, sample_batches
from ..markers import Built, capture_marked
from ..parity import parity

#: 20 is the lowest opset with Gelu and the highest below RotaryEmbedding/Attention (23), which ONNX Runtime rejects.
OPSET = 20


@contextlib.contextmanager
def silenced_exporter() -> Iterator[None]:
    """torch.onnx prints its stages and warns of missing torchvision; both would drown the command's own output."""
    loggers = [pylogging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(pylogging.ERROR)
    try:
        with quiet(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _optimize(graph: ir.Model) -> None:
    """What the exporter's own optimizer does, less the folding of normalizations."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants, inline
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules.common import fuse_pad_into_conv_rule

    from ...graph.passes.fold_transposes import FoldTransposes

    inline(graph)
    fold_constants(graph)
    rewrite(graph, pattern_rewrite_rules=[fuse_pad_into_conv_rule])
    FoldTransposes()(graph)
    for tidy in (CommonSubexpressionEliminationPass(), RemoveUnusedNodesPass()):
        tidy(graph)


def _is_hidden(graph: ir.Model, places: tuple[Location, ...]) -> bool:
    """Whether a matrix is only used by com.microsoft.Attention, which multiplies by the packed q/k/v itself."""
    users = [node for place in places for node, _ in graph.graph.initializers[place.initializer].uses()]
    return bool(users) and all(node.op_type == "Attention" and node.domain == "com.microsoft" for node in users)


def export_graph(loaded: Loaded, *, fusions: bool) -> ir.Model:
    """``loaded`` as the exporter traces it, dimensions named; see :func:`trace`. Its weights may be PyTorch's memory."""
    import torch
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    sample = sample_batches(loaded, shapes=((2, 8),))[0]
    inputs = {name: torch.from_numpy(array) for name, array in sample.items()}
    dynamic = {
        name: {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(dims) if isinstance(dim, str)}
        for name, dims in loaded.inputs.items()
    }
    # The exporter folds normalizations into the convolutions before them; then nothing finds their weights by content,
    # and ONNX Runtime does the same when it opens a graph, where no slot stands between the two.
    normalized = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in loaded.model.modules())
    config = OnnxConfig(
        opset_version=OPSET,
        dynamic_shapes=dynamic,
        ort_fusions="cpu" if fusions and not normalized else None,
        optimize=not normalized,
    )
    try:
        with silenced_exporter():
            graph = OnnxExporter().export(loaded.model, inputs, config=config).program
            DropOrigins()(graph)
            if normalized:
                _optimize(graph)
    except Exception as error:  # the exporter raises whatever torch, onnxscript or a model's own code raises
        raise cannot_be_traced(loaded.model, error) from error
    UnpackHeads()(graph)
    NameDimensions(loaded.inputs)(graph)
    return graph


def cannot_be_traced(model: Any, error: Exception) -> CaptureError:
    """What the exporter raised, in a line."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return CaptureError(f"{type(model).__name__} cannot be traced: {type(error).__name__}: {first}")


def trace(loaded: Loaded, *, fusions: bool) -> Captured:
    """Trace ``loaded`` to ONNX.

    ``fusions`` asks for ONNX Runtime's CPU operators (packed q/k/v, SkipLayerNormalization, BiasGelu). Raises
    :class:`CaptureError` where the exporter fails.
    """
    captured = capture_marked(
        loaded,
        lambda: Built((export_graph(loaded, fusions=fusions),)),
        lambda built: parity(built.graphs[0], loaded),
    )
    matrices = [name for name in captured.locations if captured.weights[name].ndim == 2]
    hidden = sorted(name for name in matrices if _is_hidden(captured.graph, captured.locations[name]))
    if fusions and hidden:
        raise CaptureError(
            f"a fused operator takes {hidden[0]} (and {len(hidden) - 1} more weights), where no adapter can reach it"
        )
    return captured
