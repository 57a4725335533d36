"""Every layer's own window, rotary tables and scale, which mobius 0.1 loses in its fusion of attention."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir

from ....errors import CaptureError
from ....graph.nodes import constant
from ....graph.passes.edit import EditPass, nodes_of
from ...load import Loaded


class RestoreLayerAttention(EditPass[ir.passes.PassResult]):
    """Gives every GroupQueryAttention its layer's window, rotary tables and scale."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set them; raises :class:`CaptureError` where PyTorch's tables are not to be had."""
        config = self.loaded.model.config
        types = _layer_types(config)
        rope = getattr(config, "rope_parameters", None)
        by_type = isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict)
        scales = _attention_scales(self.loaded.model)
        modified = False
        for layer, node in attention_nodes(model).items():
            kind = types[layer]
            if layer in scales and "scale" in node.attributes:
                node.attributes["scale"] = ir.AttrFloat32("scale", scales[layer])
                modified = True
            if kind == "sliding_attention":
                node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", int(config.sliding_window))
                modified = True
            rotary = node.attributes.get("do_rotary")
            if rotary is not None and rotary.as_int():
                tables = _rotary_tables(model.graph, self.loaded, kind if by_type else None)
                for index, table in zip((7, 8), tables, strict=False):
                    if by_type or _same_shape(node.inputs[index], table):
                        node.replace_input_with(index, table)
                        modified = True
        return ir.passes.PassResult(model, modified)


def attention_nodes(model: ir.Model) -> dict[int, ir.Node]:
    """GroupQueryAttention nodes by layer, told by the cache each reads."""
    nodes = {}
    for node in nodes_of(model):
        if node.op_type == "GroupQueryAttention":
            past = node.inputs[3]
            match = re.fullmatch(r"past_key_values\.(\d+)\.key", (past.name if past is not None else "") or "")
            if match:
                nodes[int(match.group(1))] = node
    return nodes


def _layer_types(config: Any) -> list[str]:
    types = getattr(config, "layer_types", None)
    if types:
        return list(types)
    window = getattr(config, "sliding_window", None)
    return ["sliding_attention" if window else "full_attention"] * int(config.num_hidden_layers)


def _attention_scales(model: Any) -> dict[int, float]:
    """What PyTorch multiplies queries by, by layer, where its attention modules say so (``scaling``)."""
    scales = {}
    for name, module in model.named_modules():
        match = re.search(r"\.(\d+)\.(self_attn|attention|attn)$", name)
        scaling = getattr(module, "scaling", None)
        if match and isinstance(scaling, float):
            scales[int(match.group(1))] = scaling
    return scales


def _same_shape(one: ir.Value | None, other: ir.Value) -> bool:
    return one is not None and one.shape is not None and other.shape is not None and one.shape.dims == other.shape.dims


def _rotary_tables(graph: ir.Graph, loaded: Loaded, kind: str | None) -> tuple[ir.Value, ...]:
    """Cosines and sines as PyTorch computes them: float32 ``[positions, rotary_dim / 2]``, of a layer type or of all layers.

    PyTorch multiplies positions and frequencies in float32: at position 8,191 its cosines are 2e-4 from the exact ones, and
    the model was trained with them. mobius computes exact ones, which are another model's. Empty where the PyTorch model has
    no module that computes them, and layers do not differ: mobius' own stay then.
    """
    names = [f"rotary.{kind or 'all'}.{table}" for table in ("cos", "sin")]
    if names[0] in graph.initializers:
        return tuple(graph.initializers[name] for name in names)
    import torch

    rotary = next((m for n, m in loaded.model.named_modules() if n.rpartition(".")[2] == "rotary_emb"), None)
    if rotary is None:
        if kind is None:
            return ()
        raise CaptureError(f"{type(loaded.model).__name__} has rotary settings by layer type but no rotary_emb module")
    positions = torch.arange(loaded.max_length or int(loaded.model.config.max_position_embeddings))[None]
    with torch.no_grad():
        both = rotary(torch.zeros(1, 1, dtype=torch.float32), positions, *([kind] if kind else []))
    if not isinstance(both, tuple) or any(array.is_complex() for array in both):
        return ()  # pairs laid out another way: mobius knows how, and the comparison with PyTorch tells whether it is right
    return tuple(
        constant(graph, name, np.ascontiguousarray(array[0, :, : array.shape[-1] // 2].numpy()))
        for name, array in zip(names, both, strict=True)
    )
