"""Capture by tracing with transformers' own exporter, for anything that torch.export takes."""

from __future__ import annotations

import contextlib
import io
import logging as pylogging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..errors import CaptureError
from ..graph.locate import Location, locate
from .check import parity
from .load import Loaded, quiet, sample_batches
from .marks import mark, parameters_of, unmark, unmark_graph
from .tied import untie

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


def name_dimensions(graph: ir.Model) -> None:
    """Call the free dimensions what Optimum and transformers.js call them; drop the exporter's ``s44``."""
    names: dict[str, str] = {}
    for value in graph.graph.inputs:
        if value.shape is not None and len(value.shape) == 2:
            for dim, name in zip(value.shape, ("batch_size", "sequence_length"), strict=True):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    names[dim.value] = name

    declare_shapes(graph, names)


def declare_shapes(graph: ir.Model, symbols: Mapping[str, str]) -> None:
    """Rename free dimensions by ``symbols`` everywhere, and declare every initializer as it is stored."""

    def rename(value: ir.Value) -> None:
        if value.shape is not None:
            dims = [symbols.get(d.value or "", d) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            value.shape = ir.Shape(dims)

    for value in (*graph.graph.inputs, *graph.graph.outputs):
        rename(value)
    for value in graph.graph.initializers.values():
        # The exporter's fusions leave a scale declared as a scalar that is stored as [1]; shape inference then fails.
        if value.const_value is not None:
            value.shape = ir.Shape(list(value.const_value.numpy().shape))
    for node in graph.graph:
        for output in node.outputs:
            rename(output)


@dataclass(frozen=True)
class Captured:
    """A graph, where in it each parameter lies, the parameters, and the largest difference from PyTorch.

    ``variant`` is the precision the graph has; ``matched`` counts the parameters told by each kind of evidence.
    """

    graph: ir.Model
    locations: Mapping[str, tuple[Location, ...]]
    weights: Mapping[str, np.ndarray]
    parity: float
    variant: str = "fp32"
    matched: Mapping[str, int] = field(default_factory=dict)


def trace(loaded: Loaded, *, fusions: bool) -> Captured:
    """Trace ``loaded`` to ONNX.

    ``fusions`` asks for ONNX Runtime's CPU operators (packed q/k/v, SkipLayerNormalization, BiasGelu). Raises
    :class:`CaptureError` where the exporter fails.
    """
    import torch
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    sample = sample_batches(loaded, shapes=((2, 8),))[0]
    inputs = {name: torch.from_numpy(array) for name, array in sample.items()}
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}
    originals = mark(loaded.model, loaded.fresh)
    try:
        config = OnnxConfig(opset_version=OPSET, dynamic_shapes=dynamic, ort_fusions="cpu" if fusions else None)
        try:
            with silenced_exporter():
                graph = OnnxExporter().export(loaded.model, inputs, config=config).program
        except Exception as error:  # the exporter raises whatever torch, onnxscript or a model's own code raises
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CaptureError(
                f"{type(loaded.model).__name__} cannot be traced: {type(error).__name__}: {first}"
            ) from error
        name_dimensions(graph)
        # With markers in place no head is zero and no norm is one, so nothing can agree by being nothing.
        difference = parity(graph, loaded)
        located = locate(graph, parameters_of(loaded.model))
    finally:
        unmark(loaded.model, originals)
    unmark_graph(graph, located, originals, loaded.model)
    own = {name: array.copy() for name, array in parameters_of(loaded.model).items()}
    locations, weights = untie(loaded.model, graph, located, own)
    return Captured(graph=graph, locations=locations, weights=weights, parity=difference)
