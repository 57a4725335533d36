"""The part of ONNX's file format that an adapter's subgraph needs: stored tensors, how each is expanded, and one record.

A float32 tensor goes through an Identity, a float16 one through a Cast, one in 8 bits through a Cast and a Mul by its scales.

``onnx`` itself is not imported: it is no dependency of the device part. The message is ONNX's own, field by field as
onnx.proto numbers them, in protobuf, which onnxruntime brings. What else a file holds is kept apart by protobuf and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..bundle.adapter_forms import SCALE, is_scale
from .edits import Array

#: ONNX's codes for element types, and for an attribute that is a whole number.
FLOAT, INT8, FLOAT16 = 1, 3, 10
INTEGER = 2
#: Names of ONNX's element types, by code.
_TYPES = (
    "undefined",
    "float",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "string",
    "bool",
    "float16",
    "double",
)
#: Format and operator set of the subgraphs that are written; Identity has not changed since.
IR_VERSION, OPSET = 10, 20

#: By numpy's name of a type: ONNX's code, and how the numbers lie in the file.
_CODES = {"float32": (FLOAT, "<f4"), "int8": (INT8, "i1"), "float16": (FLOAT16, "<f2")}
_DTYPES = dict(_CODES.values())

#: Messages and their fields: number, type, whether repeated. Types are protobuf's, or another message's name.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Entry": {"key": (1, "string", False), "value": (2, "string", False)},
    "Opset": {"domain": (1, "string", False), "version": (2, "int64", False)},
    "Dimension": {"dim_value": (1, "int64", False), "dim_param": (2, "string", False)},
    "Shape": {"dim": (1, "Dimension", True)},
    "TensorType": {"elem_type": (1, "int32", False), "shape": (2, "Shape", False)},
    "Type": {"tensor_type": (1, "TensorType", False)},
    "ValueInfo": {"name": (1, "string", False), "type": (2, "Type", False)},
    "Tensor": {
        "dims": (1, "int64", True),
        "data_type": (2, "int32", False),
        "float_data": (4, "float", True),
        "name": (8, "string", False),
        "raw_data": (9, "bytes", False),
        "external_data": (13, "Entry", True),
        "data_location": (14, "int32", False),
    },
    "Attribute": {
        "name": (1, "string", False),
        "i": (3, "int64", False),
        "type": (20, "int32", False),
    },
    "Node": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "name": (3, "string", False),
        "op_type": (4, "string", False),
        "attribute": (5, "Attribute", True),
        "domain": (7, "string", False),
    },
    "Graph": {
        "node": (1, "Node", True),
        "name": (2, "string", False),
        "initializer": (5, "Tensor", True),
        "input": (11, "ValueInfo", True),
        "output": (12, "ValueInfo", True),
    },
    "Model": {
        "ir_version": (1, "int64", False),
        "producer_name": (2, "string", False),
        "graph": (7, "Graph", False),
        "opset_import": (8, "Opset", True),
        "metadata_props": (14, "Entry", True),
    },
}


@cache
def _model_class() -> Any:
    """The class of ONNX's ModelProto, reduced to the fields above; in a pool of its own, so that it never meets onnx's."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    scalars = {
        "string": field.TYPE_STRING,
        "bytes": field.TYPE_BYTES,
        "int64": field.TYPE_INT64,
        "int32": field.TYPE_INT32,
        "float": field.TYPE_FLOAT,
    }
    file = descriptor_pb2.FileDescriptorProto(name="edgepeft/adapter.proto", package="edgepeft", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for label, (number, kind, repeated) in fields.items():
            made = message.field.add(name=label, number=number)
            made.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in scalars:
                made.type = scalars[kind]
                made.options.packed = repeated and kind in {"int64", "float"}  # both spellings are read
            else:
                made.type, made.type_name = field.TYPE_MESSAGE, f".edgepeft.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("edgepeft.Model"))


@dataclass(frozen=True)
class Subgraph:
    """What an adapter's ``.onnx`` file holds. ``outputs`` are name and tensor, a ``str`` instead where none is stored.

    A tensor in 8 bits is followed by its scales, as ``<name>/scale``.
    """

    has_inputs: bool
    metadata: dict[str, str]
    outputs: tuple[tuple[str, Array | str], ...]


def dump_subgraph(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """An ONNX model without inputs, with one output for each tensor: the same bytes for the same tensors.

    Args:
        tensors: arrays by the names of the outputs, as :func:`~edgepeft.bundle.adapter_forms.stored` gives them: float32,
            float16, or int8 with float32 scales under ``<name>/scale``. All outputs are float32.
        metadata: the model's ``metadata_props``.

    Raises:
        ValueError: The message would be larger than protobuf writes (2 GiB).
    """
    model = _model_class()(ir_version=IR_VERSION, producer_name="edgepeft")
    model.opset_import.add(domain="", version=OPSET)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    graph = model.graph
    graph.name = "adapter"
    for name, array in tensors.items():
        stored = f"{name}.value"
        code, dtype = _CODES[array.dtype.name]
        raw = np.ascontiguousarray(array, dtype=dtype).tobytes()
        graph.initializer.add(name=stored, dims=array.shape, data_type=code, raw_data=raw)
        if is_scale(name, tensors):
            continue  # it is read by the tensor that it is of
        if code == FLOAT:
            graph.node.add(name=name, op_type="Identity", input=[stored], output=[name])
        else:
            wide = f"{name}.wide" if code == INT8 else name
            cast = graph.node.add(name=wide, op_type="Cast", input=[stored], output=[wide])
            cast.attribute.add(name="to", i=FLOAT, type=INTEGER)
        if code == INT8:
            graph.node.add(name=name, op_type="Mul", input=[wide, f"{name}{SCALE}.value"], output=[name])
        value = graph.output.add(name=name)
        value.type.tensor_type.elem_type = FLOAT
        for size in array.shape:
            value.type.tensor_type.shape.dim.add(dim_value=size)
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's EncodeError, where the message is too large
        raise ValueError(f"protobuf does not write it: {error}") from error
    return content


def load_subgraph(content: bytes) -> Subgraph:
    """Read what :func:`dump_subgraph` or another writer of the same form wrote.

    Raises:
        ValueError: The bytes are no ONNX model, or names in it are used twice.
    """
    from google.protobuf.message import DecodeError

    try:
        model = _model_class().FromString(content)
        graph = model.graph
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        stored = {tensor.name: tensor for tensor in graph.initializer}
        nodes = {name: node for node in graph.node for name in node.output}
        names = [value.name for value in graph.output]
    except DecodeError as error:
        raise ValueError(str(error)) from error
    if not model.HasField("graph") or not model.ir_version:
        raise ValueError("it holds no graph")
    if len(stored) < len(graph.initializer) or len(nodes) < sum(len(node.output) for node in graph.node):
        raise ValueError("a name in its graph stands for two values")
    outputs: list[tuple[str, Array | str]] = []
    for name in names:
        parts = _parts(name, nodes, stored)
        outputs += (
            [(name, "is not a stored tensor")] if not parts else [(part, _array(*found)) for part, found in parts]
        )
    return Subgraph(has_inputs=len(graph.input) > 0, metadata=metadata, outputs=tuple(outputs))


def _parts(name: str, nodes: Mapping[str, Any], stored: Mapping[str, Any]) -> list[tuple[str, tuple[Any, int]]]:
    """The tensors behind an output, each with the type that it must have; none where the graph has another form."""
    node = nodes.get(name)
    if node is None or node.domain:
        return []
    if node.op_type == "Identity" and len(node.input) == 1:
        found = {name: (stored.get(node.input[0]), FLOAT)}
    elif _widens(node):
        found = {name: (stored.get(node.input[0]), FLOAT16)}
    elif node.op_type == "Mul" and len(node.input) == 2 and _widens(nodes.get(node.input[0])):
        found = {
            name: (stored.get(nodes[node.input[0]].input[0]), INT8),
            f"{name}{SCALE}": (stored.get(node.input[1]), FLOAT),
        }
    else:
        return []
    return [] if any(tensor is None for tensor, _ in found.values()) else list(found.items())


def _widens(node: Any) -> bool:
    """Whether a node is a Cast to float32."""
    if node is None or (node.op_type, node.domain, len(node.input)) != ("Cast", "", 1):
        return False
    return [each.i for each in node.attribute if each.name == "to"] == [FLOAT]


def _array(tensor: Any, code: int) -> Array | str:
    """The numbers of a tensor, or what is wrong with it. What its dimensions claim is not allocated."""
    if tensor.data_location or len(tensor.external_data):
        where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        return f"is stored in another file ({where}), which an adapter's never is"
    if tensor.data_type != code:
        known = 0 <= tensor.data_type < len(_TYPES)
        kind = _TYPES[tensor.data_type] if known else f"not a tensor of a type known here (code {tensor.data_type})"
        return f"is {kind}, slots take float32" if code == FLOAT else f"is {kind}, where {_TYPES[code]} is read"
    shape, dtype = tuple(tensor.dims), _DTYPES[code]
    if tensor.raw_data or code != FLOAT:
        flat = np.frombuffer(tensor.raw_data, dtype=dtype)
    else:
        flat = np.array(tensor.float_data, np.float32)
    count = 1
    for size in shape:
        count *= size  # of Python's integers, which do not overflow
    if any(size < 0 for size in shape) or count != flat.size:
        return f"does not hold what its dimensions {list(shape)} say: {flat.size} numbers"
    return np.array(flat.reshape(shape), np.dtype(dtype).newbyteorder("="))
