"""Slots at convolutions and embeddings, which serve one site each and have no axis for the batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...bundle.slots import ConvSlot, EmbeddingSlot
from ...errors import SiteError
from ..nodes import Chain, constant, factor_input, slot_input


def conv_users(value: ir.Value) -> list[ir.Node]:
    """The convolutions whose weight is ``value``."""
    return [node for node, index in value.uses() if index == 1 and node.op_type == "Conv" and node.domain == ""]


def gather_users(value: ir.Value) -> list[ir.Node]:
    """The look-ups in ``value``, by rows."""
    return [
        node
        for node, index in value.uses()
        if index == 0 and node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0
    ]


def _one(nodes: list[ir.Node], site: str) -> ir.Node:
    if len(nodes) != 1:
        raise SiteError(f"site {site} is used by {len(nodes)} nodes of the graph; use --mode merge")
    return nodes[0]


def _own_geometry(node: ir.Node, site: str, kernel: tuple[int, ...]) -> list[ir.Attr]:
    """The strides and padding of a convolution, for one of other channels beside it."""
    dilations = node.attributes.get_ints("dilations", [1] * len(kernel))
    if any(d != 1 and k != 1 for d, k in zip(dilations or [], kernel, strict=True)):
        raise SiteError(
            f"site {site} is a dilated convolution {dilations}; PEFT's LoRA does not dilate its own, so they do not fit together"
        )
    kept = [node.attributes[name] for name in ("strides", "pads", "auto_pad") if name in node.attributes]
    return [ir.AttrInt64s("kernel_shape", list(kernel)), *kept]


def _conv(chain: Chain, x: ir.Value, weight: ir.Value, part: str, attributes: list[ir.Attr]) -> ir.Value:
    found = chain.add("Conv", [x, weight], part)
    node = found.producer()
    assert node is not None
    for attribute in attributes:
        node.attributes[attribute.name] = attribute
    return found


def add_convolution(graph: ir.Graph, site: str, value: ir.Value, *, out_gain: bool) -> ConvSlot:
    """A slot at the convolution whose weight is ``value`` (``[out, in / groups, *kernel]``): 2 Conv and 1 Add.

    ONNX Runtime's Conv takes zero channels and then gives zeros (1.32, checked by a test), so rank 0 is the base.
    """
    node = _one(conv_users(value), site)
    out_channels, in_per_group, *kernel = (int(dim) for dim in value.const_value.shape)  # type: ignore[union-attr,arg-type]
    groups = node.attributes.get_int("group", 1) or 1
    slot = ConvSlot(
        name=site,
        in_channels=in_per_group * groups,
        out_channels=out_channels,
        kernel=tuple(kernel),
        groups=groups,
        a=f"{site}.lora_A",
        b=f"{site}.lora_B",
        rank=f"{site}.rank",
        out_gain=f"{site}.out_gain" if out_gain else None,
        weight=value.name or "",
    )
    shapes = dict(slot.tensors())
    points = [1] * len(kernel)
    geometry = _own_geometry(node, site, slot.kernel)
    a = slot_input(graph, slot.a, shapes[slot.a], np.zeros((0, slot.in_channels, *kernel), np.float32))
    b = factor_input(graph, slot.b, shapes[slot.b], out_axis=0)
    x = node.inputs[0]
    assert x is not None
    if slot.out_gain is not None:
        gain = slot_input(graph, slot.out_gain, shapes[slot.out_gain], np.ones((1, out_channels, *points), np.float32))
        _split_conv_bias(graph, node, len(kernel))
    chain = Chain(graph, site)
    delta = _conv(chain, _conv(chain, x, a, "lora_A", geometry), b, "lora_B", [ir.AttrInt64s("kernel_shape", points)])
    total = chain.add("Add", [node.outputs[0], delta], "Add")
    if slot.out_gain is not None:
        total = chain.add("Mul", [total, gain], "out_gain")
    chain.replace(node.outputs[0], total)
    return slot


def _split_conv_bias(graph: ir.Graph, node: ir.Node, dims: int) -> None:
    """Turn a Conv with bias into one without and an Add, so that a gain can stand between them."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return
    chain = Chain(graph, f"{node.name}/bias")
    node.resize_inputs(2)
    shape = constant(graph, f"edgepeft.channels_{dims}", np.array([1, -1, *[1] * dims], np.int64))
    total = chain.add("Add", [node.outputs[0], chain.add("Reshape", [bias, shape], "Reshape")], "Add")
    chain.replace(node.outputs[0], total)


def add_embedding(graph: ir.Graph, site: str, value: ir.Value) -> EmbeddingSlot:
    """A slot at the look-up in ``value`` (``[rows, width]``): a Gather, a MatMul and an Add."""
    node = _one(gather_users(value), site)
    rows, width = (int(dim) for dim in value.const_value.shape)  # type: ignore[union-attr,arg-type]
    slot = EmbeddingSlot(
        name=site,
        rows=rows,
        width=width,
        a=f"{site}.lora_A",
        b=f"{site}.lora_B",
        rank=f"{site}.rank",
        weight=value.name or "",
    )
    shapes = dict(slot.tensors())
    a = slot_input(graph, slot.a, shapes[slot.a], np.zeros((rows, 0), np.float32))
    b = factor_input(graph, slot.b, shapes[slot.b], out_axis=1)
    ids = node.inputs[1]
    assert ids is not None
    chain = Chain(graph, site)
    delta = chain.add("MatMul", [chain.add("Gather", [a, ids], "lora_A"), b], "lora_B")
    chain.replace(node.outputs[0], chain.add("Add", [node.outputs[0], delta], "Add"))
    return slot
