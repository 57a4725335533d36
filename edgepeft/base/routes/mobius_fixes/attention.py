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
            if by_type and rotary is not None and rotary.as_int():
                for index, table in ((7, "cos"), (8, "sin")):
                    node.replace_input_with(index, _rotary_table(model.graph, self.loaded, kind, table))
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


def _rotary_table(graph: ir.Graph, loaded: Loaded, kind: str, table: str) -> ir.Value:
    """Cosines or sines of a layer type, as PyTorch computes them: float32 ``[positions, rotary_dim / 2]``."""
    name = f"rotary.{kind}.{table}"
    existing = graph.initializers.get(name)
    if existing is not None:
        return existing
    import torch

    rotary = next((m for n, m in loaded.model.named_modules() if n.rpartition(".")[2] == "rotary_emb"), None)
    if rotary is None:
        raise CaptureError(f"{type(loaded.model).__name__} has rotary settings by layer type but no rotary_emb module")
    positions = torch.arange(loaded.max_length or int(loaded.model.config.max_position_embeddings))[None]
    with torch.no_grad():
        both = rotary(torch.zeros(1, 1, dtype=torch.float32), positions, kind)
    for part, array in zip(("cos", "sin"), both, strict=True):
        half = array[0, :, : array.shape[-1] // 2].numpy()
        constant(graph, f"rotary.{kind}.{part}", np.ascontiguousarray(half))
    return graph.initializers[name]
