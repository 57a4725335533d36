"""Weights in blocks of 4 or 8 bits that are unpacked once, when a session is made, for runtimes without kernels for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..bit_packing import pack, unpack
from .edit import EditPass, nodes_of, replace_node

_TYPES = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}


class UnpackInt4(EditPass[ir.passes.PassResult]):
    """Replaces each MatMulNBits of 4 or 8 bits by DequantizeLinear, Transpose and MatMul, and an Add where it has a bias.

    The quantized tensors keep their bytes, and where those lie: only their type and shape are said differently. A runtime
    that folds constants (``session.disable_quant_qdq`` for ONNX Runtime) then unpacks the weights once and multiplies in
    fp32; one without such kernels would unpack them in every run, or refuse them. Zero points that are padded to whole bytes
    in each row are written again without. Nodes whose columns are reordered, or whose last block is cut short, stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace them, and declare the opset that has blocks in DequantizeLinear."""
        nodes = [node for node in nodes_of(model) if node.op_type == "MatMulNBits" and _fits(node)]
        for node in nodes:
            _replace(model.graph, node)
        initializers = model.graph.initializers
        unused = [name for name, value in initializers.items() if not value.uses() and not value.is_graph_output()]
        for name in unused:
            del initializers[name]
        if nodes:
            model.graph.opset_imports[""] = max(21, model.graph.opset_imports[""])
        return ir.passes.PassResult(model, bool(nodes or unused))


class SetAccuracyLevel(EditPass[ir.passes.PassResult]):
    """Has every MatMulNBits compute at ``level``: 0 is fp32 activations, 4 lets kernels use 8-bit ones."""

    def __init__(self, level: int) -> None:
        self.level = level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set it everywhere."""
        nodes = [node for node in nodes_of(model) if node.op_type == "MatMulNBits"]
        for node in nodes:
            node.attributes.add(ir.AttrInt64("accuracy_level", self.level))
        return ir.passes.PassResult(model, bool(nodes))


def _fits(node: ir.Node) -> bool:
    wide, narrow, blocks = _sizes(node)
    packed, scales = node.inputs[1], node.inputs[2]
    constant = all(value is None or value.const_value is not None for value in (packed, _input(node, 3)))
    constant = (
        constant and scales is not None and (scales.const_value is not None or _is_widened(scales, narrow, blocks))
    )
    reordered = _input(node, 4) is not None
    whole = blocks * node.attributes.get_int("block_size", 0) == wide
    zeros = _input(node, 3)
    known = zeros is None or (zeros.const_value is not None and zeros.const_value.dtype == ir.DataType.UINT8)
    return node.attributes.get_int("bits", 4) in _TYPES and constant and whole and known and not reordered


def _is_widened(scales: ir.Value, narrow: int, blocks: int) -> bool:
    """Whether scales are stored in float16 and widened by the graph, which a session does once, when it is made."""
    producer = scales.producer()
    stored = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    tensor = None if stored is None else stored.const_value
    return tensor is not None and tuple(tensor.shape) == (narrow, blocks)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _sizes(node: ir.Node) -> tuple[int, int, int]:
    """Inputs, outputs, and blocks of inputs."""
    wide, block = node.attributes.get_int("K", 0), node.attributes.get_int("block_size", 1)
    return wide, node.attributes.get_int("N", 0), wide // block


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    wide, narrow, blocks = _sizes(node)
    bits = node.attributes.get_int("bits", 4)
    packed, scales = node.inputs[1], node.inputs[2]
    zero, bias = _input(node, 3), _input(node, 5)
    assert packed is not None
    assert scales is not None
    name = node.name or packed.name or ""
    dtype = _TYPES[bits]
    weight = _said(graph, packed, f"{name}/packed", dtype, [narrow, wide])
    scale = scales
    if scales.const_value is not None:
        scale = _said(graph, scales, f"{name}/scales", ir.DataType.FLOAT, [narrow, blocks])
    padded = blocks * bits % 8 != 0
    if zero is not None and not padded:
        middle = _said(graph, zero, f"{name}/zero", dtype, [narrow, blocks])
    else:
        numbers = np.full(narrow * blocks, 1 << (bits - 1), np.uint8)
        if zero is not None and zero.const_value is not None:
            numbers = unpack(zero.const_value.numpy(), bits, narrow)[:, :blocks].ravel()
        middle = _register(graph, _stored(numbers, dtype, [narrow, blocks], f"{name}/zero"))
    block = node.attributes.get_int("block_size", 0)
    unpacked = ir.node(
        "DequantizeLinear", [weight, scale, middle], {"axis": 1, "block_size": block}, name=f"{name}/unpack"
    )
    turned = ir.node("Transpose", [unpacked.outputs[0]], {"perm": [1, 0]}, name=f"{name}/turn")
    product = ir.node("MatMul", [node.inputs[0], turned.outputs[0]], name=f"{name}/MatMul")
    unpacked.outputs[0].name, turned.outputs[0].name = f"{name}/unpacked", f"{name}/turned"
    new = [unpacked, turned, product]
    if bias is not None:
        product.outputs[0].name = f"{name}/product"
        product.outputs[0].type = node.outputs[0].type
        new.append(ir.node("Add", [product.outputs[0], bias], name=f"{name}/Add"))
    replace_node(node, new)


def _stored(numbers: np.ndarray, dtype: ir.DataType, dims: list[int], name: str) -> ir.TensorProtocol:
    if dtype == ir.DataType.UINT8:
        return ir.tensor(numbers.reshape(dims), name=name)
    return ir.PackedTensor(pack(numbers[None], 4)[0], dtype, shape=ir.Shape(dims), name=name)


def _said(graph: ir.Graph, value: ir.Value, name: str, dtype: ir.DataType, dims: list[int]) -> ir.Value:
    """The same bytes under another type and shape."""
    tensor = value.const_value
    shape = ir.Shape(dims)
    if isinstance(tensor, ir.ExternalTensor):
        return _register(
            graph,
            ir.ExternalTensor(
                tensor.location, tensor.offset, tensor.length, dtype, shape=shape, name=name, base_dir=tensor.base_dir
            ),
        )
    assert tensor is not None
    if dtype == ir.DataType.UINT4:
        raw = np.frombuffer(tensor.tobytes(), np.uint8).copy()
        return _register(graph, ir.PackedTensor(raw, dtype, shape=shape, name=name))
    return _register(graph, ir.tensor(tensor.numpy().reshape(dims), name=name))


def _register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape([int(dim) for dim in tensor.shape])  # type: ignore[arg-type] # a stored tensor has no symbolic size
    value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
