"""A language model's key/value cache in 8 bits: each channel of each head has one scale, of magnitudes that were measured.

ONNX Runtime's GroupQueryAttention rounds new keys and values to ``round(x / scale)`` as it writes them, and multiplies by the scale
as it reads them. Weights and slots are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..errors import InputError
from ..graph.nodes import constant

#: What is behind a variant's name, and its graph's, where the cache is in 8 bits.
SUFFIX = "kv8"
#: How much larger than what was measured a number may be before it is cut off: texts differ from those that are run.
MARGIN = 1.25
#: GroupQueryAttention's inputs and outputs: keys and values of the past and of the present, rotary tables, and their scales.
_PASTS, _PRESENTS, _COSINES, _SCALES = (3, 4), (1, 2), 7, (12, 13)


@dataclass(frozen=True)
class Rotation:
    """How a layer turns its keys: channel ``i`` and its partner are one vector, which each position turns further.

    ``channels`` is how many of a head's first channels are turned; pairs are neighbours where ``interleaved``, else the halves.
    """

    channels: int
    interleaved: bool

    def turned_any_way(self, keys: np.ndarray) -> np.ndarray:
        """The largest magnitude that each channel of ``keys`` ``[..., head_dim]`` can have at any position.

        Short texts turn the slow pairs a little only; far into the context the whole length of a pair stands in either channel.
        """
        found = np.abs(keys)
        part = keys[..., : self.channels]
        first, second = (part[..., 0::2], part[..., 1::2]) if self.interleaved else np.split(part, 2, axis=-1)
        length = np.hypot(first, second)
        if self.interleaved:
            found[..., 0 : self.channels : 2] = found[..., 1 : self.channels : 2] = length
        else:
            found[..., : self.channels] = np.concatenate([length, length], axis=-1)
        return found


def attention_of(graph: ir.Graph, source: Path) -> list[ir.Node]:
    """The attention nodes that keep a graph's cache.

    Raises:
        InputError: Another operator than GroupQueryAttention keeps it, or it is no float32 cache.
    """
    nodes = [node for node in graph if node.op_type == "GroupQueryAttention"]
    kept = {value.name for node in nodes for place in _PASTS if (value := node.inputs[place]) is not None}
    pasts = [value for value in graph.inputs if (value.name or "").startswith("past_key_values.")]
    other = next((value for value in pasts if value.name not in kept), None)
    if not pasts or other is not None:
        raise InputError(
            f"{source.name}: the cache {'' if other is None else f'{other.name} '}is not kept by GroupQueryAttention, the only "
            "operator of ONNX Runtime's that holds it in 8 bits. Export the model from its checkpoint, where mobius builds it"
        )
    wide = next((value for value in pasts if value.dtype != ir.DataType.FLOAT), None)
    if wide is not None:
        raise InputError(f"{source.name}: {wide.name} is {wide.dtype}; a cache in 8 bits is made of one in float32")
    return nodes


def rotations(source: Path) -> dict[str, Rotation]:
    """By output that holds a layer's keys, how they are turned; keys that are not turned are left out."""
    graph = ir.load(source).graph
    found = {}
    for node in attention_of(graph, source):
        table = node.inputs[_COSINES] if len(node.inputs) > _COSINES else None
        if node.attributes.get_int("do_rotary", 0) and table is not None and table.shape is not None:
            channels = 2 * int(table.shape[1])  # type: ignore[arg-type]
            interleaved = bool(node.attributes.get_int("rotary_interleaved", 0))
            found[node.outputs[_PRESENTS[0]].name or ""] = Rotation(channels, interleaved)
    return found


def write_cache8(source: Path, target: Path, largest: Mapping[str, np.ndarray]) -> None:
    """Write ``source``'s graph with its cache in 8 bits; the weights stay in their file, which both graphs name.

    Args:
        source: The graph, its weights beside it.
        target: The file to write, in the same folder.
        largest: The largest magnitude of each channel, ``[heads, head_dim]``, by the output that holds the keys or values.

    Raises:
        InputError: The cache is not kept by GroupQueryAttention, or not in float32.
    """
    model = ir.load(source)
    for node in attention_of(model.graph, source):
        inputs = list(node.inputs) + [None] * (max(_SCALES) + 1 - len(node.inputs))
        for past, present, scale in zip(_PASTS, _PRESENTS, _SCALES, strict=True):
            name = node.outputs[present].name or ""
            inputs[scale] = constant(model.graph, f"{name}.scale", scales_of(largest[name]))
            for value in (inputs[past], node.outputs[present]):
                assert value is not None
                value.type = ir.TensorType(ir.DataType.INT8)
        node.resize_inputs(len(inputs))
        for place, value in enumerate(inputs):
            node.replace_input_with(place, value)
        for kind in ("k_quant_type", "v_quant_type"):
            node.attributes[kind] = ir.AttrString(kind, "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
    ir.save(model, target)


def scales_of(largest: np.ndarray) -> np.ndarray:
    """Scales ``[1, heads, 1, head_dim]``, float32, with which magnitudes up to ``MARGIN`` times the largest are held."""
    held = np.maximum(np.asarray(largest, np.float32) * np.float32(MARGIN), np.float32(1e-6))
    return np.ascontiguousarray(held[None, :, None] / np.float32(127))
