"""What is put right and made uniform in a causal LM's graph as mobius builds it.

mobius 0.1 fuses attention into GroupQueryAttention and on the way loses sliding windows, and gives every layer the first
layer's rotary tables. The rest brings its graphs to the names and operators the bundle promises.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir

from ...errors import CaptureError
from ...graph.nodes import constant
from ...graph.passes.logits_from import logits_from
from ..load import Loaded

#: Every operator used is the same from here up; runtimes on devices are often older than the newest opset.
OPSET = 20
_NEWER = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter", "Swish"}
_RENAMED = {
    "batch": "batch_size",
    "sequence_len": "sequence_length",
    "past_sequence_len": "past_sequence_length",
    "past_seq_len + seq_len": "total_sequence_length",
    "past_sequence_len + sequence_len": "total_sequence_length",
}


def mend(graph: ir.Model, loaded: Loaded) -> None:
    """Bring ``graph`` to the house's conventions, in place."""
    _layers(graph, loaded)
    _embedding_scale(graph, loaded.model)
    _norms(graph)
    _epsilons(graph, loaded.model)
    logits_from(graph)
    _lower_opset(graph)
    _rename_dimensions(graph)
    _remove_unused(graph)


def attention_nodes(graph: ir.Model) -> dict[int, ir.Node]:
    """GroupQueryAttention nodes by layer, told by the cache each reads."""
    found = {}
    for node in graph.graph:
        if node.op_type == "GroupQueryAttention":
            past = node.inputs[3]
            match = re.fullmatch(r"past_key_values\.(\d+)\.key", (past.name if past is not None else "") or "")
            if match:
                found[int(match.group(1))] = node
    return found


def _layer_types(config: Any) -> list[str]:
    types = getattr(config, "layer_types", None)
    if types:
        return list(types)
    window = getattr(config, "sliding_window", None)
    return ["sliding_attention" if window else "full_attention"] * int(config.num_hidden_layers)


def _layers(graph: ir.Model, loaded: Loaded) -> None:
    """Give every GroupQueryAttention its layer's window and rotary tables."""
    config = loaded.model.config
    types = _layer_types(config)
    rope = getattr(config, "rope_parameters", None)
    by_type = isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict)
    scales = _attention_scales(loaded.model)
    for layer, node in attention_nodes(graph).items():
        kind = types[layer]
        if layer in scales and "scale" in node.attributes:
            node.attributes["scale"] = ir.AttrFloat32("scale", scales[layer])
        if kind == "sliding_attention":
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", int(config.sliding_window))
        rotary = node.attributes.get("do_rotary")
        if by_type and rotary is not None and rotary.as_int():
            for index, table in ((7, "cos"), (8, "sin")):
                node.replace_input_with(index, _rotary_table(graph, loaded, kind, table))


def _attention_scales(model: Any) -> dict[int, float]:
    """What PyTorch multiplies queries by, by layer, where its attention modules say so (``scaling``)."""
    found = {}
    for name, module in model.named_modules():
        match = re.search(r"\.(\d+)\.(self_attn|attention|attn)$", name)
        scaling = getattr(module, "scaling", None)
        if match and isinstance(scaling, float):
            found[int(match.group(1))] = scaling
    return found


def _embedding_scale(graph: ir.Model, model: Any) -> None:
    """Gemma multiplies embeddings by sqrt(hidden) in float32; mobius 0.1 rounds that number to float16 first."""
    scale = getattr(model.get_input_embeddings(), "embed_scale", None)
    if scale is None:
        return
    for node in graph.graph:
        if node.op_type != "Gather" or node.inputs[1] is None or node.inputs[1].name != "input_ids":
            continue
        for user, index in list(node.outputs[0].uses()):
            other = user.inputs[1 - index] if user.op_type == "Mul" else None
            if other is not None and other.const_value is not None and other.const_value.size == 1:
                value = constant(graph.graph, "edgepeft.embed_scale", np.array(float(scale), np.float32))
                user.replace_input_with(1 - index, value)


def _rotary_table(graph: ir.Model, loaded: Loaded, kind: str, table: str) -> ir.Value:
    """Cosines or sines of a layer type, as PyTorch computes them: float32 ``[positions, rotary_dim / 2]``."""
    name = f"rotary.{kind}.{table}"
    existing = graph.graph.initializers.get(name)
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
        constant(graph.graph, f"rotary.{kind}.{part}", np.ascontiguousarray(half))
    return graph.graph.initializers[name]


def _norms(graph: ir.Model) -> None:
    """RMSNormalization (opset 23) as ONNX Runtime's own SimplifiedLayerNormalization, which old runtimes have too."""
    for node in list(graph.graph):
        if node.op_type == "RMSNormalization" and node.domain == "":
            new = ir.node(
                "SimplifiedLayerNormalization",
                list(node.inputs),
                {
                    "axis": node.attributes.get_int("axis", -1),
                    "epsilon": node.attributes.get_float("epsilon", 1e-5),
                    "stash_type": node.attributes.get_int("stash_type", 1),
                },
                name=node.name,
            )
            old, fresh = node.outputs[0], new.outputs[0]
            fresh.shape, fresh.type, name = old.shape, old.type, old.name
            old.name, fresh.name = f"{name}.old", name
            old.replace_all_uses_with(fresh)
            graph.graph.insert_before(node, new)
            graph.graph.remove(node, safe=True)


def _epsilons(graph: ir.Model, model: Any) -> None:
    """The layer norms' epsilon where PyTorch has one for all: mobius 0.1 takes a default of its own for OPT."""
    import torch

    found = {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)}
    if len(found) != 1:
        return
    for node in graph.graph:
        if node.op_type in {"LayerNormalization", "SkipLayerNormalization"}:
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", float(next(iter(found))))


def _lower_opset(graph: ir.Model) -> None:
    """Declare the oldest opset that has every operator used."""
    ops = {node.op_type for node in graph.graph.all_nodes() if node.domain == ""}
    if not ops & _NEWER and graph.graph.opset_imports.get("", 0) > OPSET:
        graph.graph.opset_imports[""] = OPSET


def _rename_dimensions(graph: ir.Model) -> None:
    def rename(value: ir.Value) -> None:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else _RENAMED.get(str(d.value), d) for d in value.shape])

    for value in (*graph.graph.inputs, *graph.graph.outputs):
        rename(value)
    for node in graph.graph:
        for output in node.outputs:
            rename(output)


def _remove_unused(graph: ir.Model) -> None:
    """Drop function bodies of operators ONNX Runtime has itself, and initializers that nothing uses."""
    for key in list(graph.functions):
        if key[0] == "com.microsoft":
            del graph.functions[key]
    inputs = set(map(id, graph.graph.inputs))
    for name, value in list(graph.graph.initializers.items()):
        if not value.uses() and id(value) not in inputs:
            del graph.graph.initializers[name]
