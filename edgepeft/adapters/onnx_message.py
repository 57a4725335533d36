"""The part of ONNX's file format that an adapter's subgraph needs: stored tensors, an Identity each, and one record.

``onnx`` itself is not imported: it is no dependency of the device part. The message is ONNX's own, field by field as
onnx.proto numbers them, in protobuf, which onnxruntime brings. What else a file holds is kept apart by protobuf and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .edits import Array

#: ONNX's code for float32.
FLOAT = 1
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
    "Node": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "name": (3, "string", False),
        "op_type": (4, "string", False),
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
    """What an adapter's ``.onnx`` file holds. ``outputs`` are name and tensor, a ``str`` instead where none is stored."""

    has_inputs: bool
    metadata: dict[str, str]
    outputs: tuple[tuple[str, Array | str], ...]


def dump_subgraph(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """An ONNX model without inputs, with one output for each tensor: the same bytes for the same tensors.

    Args:
        tensors: float32 arrays by the names of the outputs.
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
        raw = np.ascontiguousarray(array, dtype="<f4").tobytes()
        graph.initializer.add(name=stored, dims=array.shape, data_type=FLOAT, raw_data=raw)
        graph.node.add(name=name, op_type="Identity", input=[stored], output=[name])
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
    outputs = []
    for name in names:
        node = nodes.get(name)
        copies = node is not None and (node.op_type, node.domain, len(node.input)) == ("Identity", "", 1)
        tensor = stored.get(node.input[0]) if node is not None and copies else None
        outputs.append((name, "is not a stored tensor" if tensor is None else _array(tensor)))
    return Subgraph(has_inputs=len(graph.input) > 0, metadata=metadata, outputs=tuple(outputs))


def _array(tensor: Any) -> Array | str:
    """The numbers of a tensor, or what is wrong with it. What its dimensions claim is not allocated."""
    if tensor.data_location or len(tensor.external_data):
        where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        return f"is stored in another file ({where}), which an adapter's never is"
    if tensor.data_type != FLOAT:
        code = tensor.data_type
        kind = _TYPES[code] if 0 <= code < len(_TYPES) else f"not a tensor of a type known here (code {code})"
        return f"is {kind}, slots take float32"
    shape = tuple(tensor.dims)
    flat = np.frombuffer(tensor.raw_data, dtype="<f4") if tensor.raw_data else np.array(tensor.float_data, np.float32)
    count = 1
    for size in shape:
        count *= size  # of Python's integers, which do not overflow
    if any(size < 0 for size in shape) or count != flat.size:
        return f"does not hold what its dimensions {list(shape)} say: {flat.size} numbers"
    return np.array(flat.reshape(shape), np.float32)
