"""A causal LM that was exported to ONNX elsewhere: transformers.js and Optimum layouts, and onnxruntime-genai's builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...bundle.cache_names import LAYER_PAST, present_of
from ...errors import CaptureError
from ...graph.nodes import is_linear
from ...graph.passes.logits_from import AddLogitsFrom
from ...graph.passes.name_causal import NameCausal
from ...graph.run import run_graph
from ..captured import Captured
from ..load import Loaded
from ..parity import graph_causal_parity
from ..parity_causal import empty_cache
from ..quantized_reference import computing_with, exact_activations, find_parameters, variant_of
from .given import read_graph

_TAKEN = {"input_ids", "attention_mask", "position_ids", "logits_from"}


def open_existing_causal(path: Path, loaded: Loaded) -> Captured:
    """The ONNX file at ``path`` as a capture of the causal LM ``loaded``.

    Weights in blocks of 4 or 8 bits (MatMulNBits, GatherBlockQuantized) are found by their rounded content; the graph is
    then compared with PyTorch computing with the rounded numbers. Raises :class:`CaptureError` where the file has no
    cache, is in float16, or holds other weights, and :class:`ParityError` where it computes something else.
    """
    graph = read_graph(path)
    _check_layout(path, graph, loaded.model.config)
    NameCausal()(graph)
    match = find_parameters(graph, loaded.model)
    matrices = [name for name, array in match.weights.items() if array.ndim == 2]
    missing = [name for name in matrices if name not in loaded.fresh and not match.locations[name]]
    if len(missing) > len(matrices) // 2:
        shape = match.weights[missing[0]].shape
        raise CaptureError(
            f"{path} does not hold the weights of {loaded.source}: {len(missing)} of {len(matrices)} matrices were found "
            f"neither by content nor by rounded content, the first is {missing[0]} {shape}. It was exported from another "
            "checkpoint, or quantized in a form that is not read here (MatMulNBits and GatherBlockQuantized are)."
        )
    AddLogitsFrom()(graph)
    with computing_with(loaded.model, match.rounded), exact_activations(graph):
        difference = graph_causal_parity(graph, loaded)
    _declare_ranks(graph)
    return Captured(
        graph=graph,
        locations=match.locations,
        weights=match.weights,
        parity=difference,
        variant=variant_of(graph),
        matched=match.matched,
    )


def _check_layout(path: Path, graph: ir.Model, config: Any) -> None:
    """Refuse what is not a decoder with a float32 cache as transformers.js feeds it; declare the cache's fixed sizes."""
    inputs = {value.name or "": value for value in graph.graph.inputs}
    caches = {name: value for name, value in inputs.items() if LAYER_PAST.fullmatch(name)}
    if "use_cache_branch" in inputs:
        raise CaptureError(
            f"{path} is a merged decoder (it has the input use_cache_branch): its layers stand in two branches, where slots cannot "
            "be put. Give the decoder with past alone, decoder_with_past_model.onnx, or export it again with a current exporter."
        )
    if not caches:
        raise CaptureError(
            f"{path} has no inputs past_key_values.N.key (it has {', '.join(inputs)}): it was exported without a cache and would "
            "compute the whole text again for every token. Export it with one (task text-generation-with-past)."
        )
    unknown = sorted(set(inputs) - set(caches) - _TAKEN - set(graph.graph.initializers))
    if unknown or not {"input_ids", "attention_mask"} <= set(inputs):
        raise CaptureError(
            f"{path} has inputs {', '.join(sorted(set(inputs) - set(caches)))}; a decoder has input_ids, attention_mask and, "
            "where it asks for them, position_ids"
        )
    layers, wanted = len(caches) // 2, int(config.num_hidden_layers)
    if layers != wanted:
        raise CaptureError(f"{path} has caches for {layers} layers, the model has {wanted}: it is another model's file")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    presents = {v.name or "": v for v in graph.graph.outputs}
    for name, value in caches.items():
        present = presents.get(present_of(name))
        if present is None:
            raise CaptureError(f"{path} has the input {name} but no output {present_of(name)}")
        if value.dtype != ir.DataType.FLOAT:
            raise CaptureError(
                f"{path} keeps its cache as {value.dtype}; only graphs that compute in float32 take slots "
                "(quantized weights are taken, float16 is not)"
            )
        for each in (value, present):
            dims = list(each.shape or (None,) * 4)
            fixed = {1: int(heads), 3: int(size)}
            each.shape = ir.Shape([fixed.get(i, d) if not isinstance(d, int) else d for i, d in enumerate(dims)])


def _declare_ranks(graph: ir.Model) -> None:
    """Measure the rank of activations whose shape the file does not declare; slots must know which are 2-D."""
    values = {
        value.name: value
        for node in graph.graph
        if is_linear(node)
        for value in node.inputs[:1]
        if value is not None and value.shape is None
    }
    if not values:
        return
    import numpy as np

    shapes = {
        v.name or "": [d if isinstance(d, int) else str(d.value) for d in v.shape or ()] for v in graph.graph.inputs
    }
    ones = np.ones((2, 3), np.int64)
    feeds = {"input_ids": ones, "attention_mask": ones, "position_ids": np.arange(3)[None].repeat(2, 0)}
    outputs = list(graph.graph.outputs)
    graph.graph.outputs.extend(values.values())
    try:
        (found,) = run_graph(graph, [{**feeds, **empty_cache(shapes, 2)}])
    finally:
        graph.graph.outputs.clear()
        graph.graph.outputs.extend(outputs)
    for name, value in values.items():
        value.shape = ir.Shape([None] * found[name or ""].ndim)
