"""Capture of decoder-only language models by tracing, for architectures that mobius does not build correctly.

A traced graph computes attention in plain operators (no GroupQueryAttention): slower at decoding, and the graph asks for
``position_ids``. Inputs, outputs and dimensions are named as in the graphs that mobius builds.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from ...errors import CaptureError
from ...graph.passes.drop_origins import DropOrigins
from ...graph.passes.logits_from import AddLogitsFrom
from ...graph.passes.name_causal import NameCausal
from ...graph.passes.split_experts import SplitExperts
from ...graph.passes.split_fused_matmul import SplitFusedMatMul
from ..captured import Captured
from ..load import Loaded
from ..markers import Built, capture_marked
from ..parity import graph_causal_parity
from .traced import OPSET, cannot_be_traced, silenced_exporter

#: The sample's batch, cached tokens and new tokens: unequal, and none is 0 or 1, which torch.export takes for constants.
_BATCH, _PAST, _NEW = 2, 3, 4


def trace_causal(loaded: Loaded) -> Captured:
    """Trace ``loaded`` with a cache to ONNX; see :func:`edgepeft.base.parity.graph_causal_parity` for what is compared.

    Inputs are ``input_ids`` and (where the architecture takes them) ``position_ids`` ``[batch, sequence]``,
    ``attention_mask`` ``[batch, past + sequence]`` and ``past_key_values.N.key``/``.value`` ``[batch, kv_heads, past,
    head_dim]``; outputs are ``logits`` and ``present.N.key``/``.value``. Raises :class:`CaptureError` where the exporter
    fails or the model keeps another state than keys and values, and :class:`ParityError` where the graph is not right.
    """
    return capture_marked(
        loaded,
        lambda: Built((export_causal(loaded),)),
        lambda built: graph_causal_parity(built.graphs[0], loaded),
    )


def export_causal(loaded: Loaded, *, fusions: bool = True) -> ir.Model:
    """``loaded`` as the exporter traces it, with a cache and named as :func:`trace_causal` says.

    Its weights may be PyTorch's memory. Without ``fusions`` none of ONNX Runtime's own operators are used.
    """
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    inputs, dynamic = _sample(loaded)
    config = OnnxConfig(opset_version=OPSET, dynamic_shapes=dynamic, ort_fusions="cpu" if fusions else None)
    try:
        with silenced_exporter(), _windows_by_position(loaded.model):
            graph = OnnxExporter().export(loaded.model, inputs, config=config).program
    except Exception as error:  # the exporter raises whatever torch, onnxscript or a model's own code raises
        raise cannot_be_traced(loaded.model, error) from error
    for edit in (DropOrigins(), NameCausal(), SplitFusedMatMul(), SplitExperts(), AddLogitsFrom()):
        edit(graph)
    return graph


@contextmanager
def _windows_by_position(model: Any) -> Iterator[None]:
    """While tracing, let sliding windows count tokens: transformers counts places in the cache, padding among them.

    Prompts padded on the right leave gaps in their rows' caches, and a row must not forget a token for each.
    """
    from transformers import masking_utils

    home = sys.modules[type(model).__module__]
    name = "create_sliding_window_causal_mask"
    original, overlay = getattr(home, name, None), masking_utils.sliding_window_overlay
    if original is None:
        yield
        return

    def create(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return original(*args, **kwargs)
        position = mask.cumsum(-1) - 1

        def by_position(window: int) -> Callable[[Any, Any, Any, Any], Any]:
            return lambda batch, head, query, key: position[batch, key] > position[batch, query] - window

        masking_utils.sliding_window_overlay = by_position
        try:
            return original(*args, **kwargs)
        finally:
            masking_utils.sliding_window_overlay = overlay

    setattr(home, name, create)
    try:
        yield
    finally:
        setattr(home, name, original)


def _tokens(model: Any) -> Any:
    import torch

    vocab = int(model.config.vocab_size)
    return torch.from_numpy(np.random.default_rng(0).integers(0, vocab, (_BATCH, _PAST + _NEW)))


def cache_of(model: Any) -> Any:
    """The layers of the cache that ``model`` fills, with ``keys`` and ``values`` ``[batch, kv_heads, past, head_dim]`` each.

    Raises :class:`CaptureError` where it keeps another state.
    """
    import torch

    with torch.no_grad():
        cache = model(input_ids=_tokens(model)[:, :_PAST], use_cache=True).get("past_key_values")
    layers = getattr(cache, "layers", None)
    if not layers or any(not hasattr(layer, "keys") or getattr(layer, "keys", None) is None for layer in layers):
        raise CaptureError(
            f"{type(model).__name__} keeps another state between tokens than one key and value a layer "
            f"({type(cache).__name__}), which the bundle's decoder inputs cannot carry"
        )
    return layers


def _sample(loaded: Loaded) -> tuple[dict[str, Any], dict[str, Any]]:
    """One decode step's inputs with a padded row and a cache, and which of their dimensions are free."""
    import torch
    from transformers import DynamicCache

    model, free = loaded.model, torch.export.Dim.DYNAMIC
    layers = cache_of(model)
    # A cache of its own: sliding-window layers would crop theirs, and the graph's caches hold every token.
    cache = DynamicCache()
    for index, layer in enumerate(layers):
        cache.update(layer.keys, layer.values, index)
    mask = torch.ones(_BATCH, _PAST + _NEW, dtype=torch.int64)
    mask[1, -2:] = 0  # an all-ones mask would be pruned from the graph
    inputs = {"input_ids": _tokens(model)[:, _PAST:], "attention_mask": mask, "past_key_values": cache}
    dynamic: dict[str, Any] = {name: {0: free, 1: free} for name in ("input_ids", "attention_mask")}
    dynamic["past_key_values"] = [{0: free, 2: free}] * (2 * len(layers))
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(_PAST, _PAST + _NEW)[None].repeat(_BATCH, 1)
        dynamic["position_ids"] = {0: free, 1: free}
    return inputs, dynamic
