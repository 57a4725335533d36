"""Adapter files: ONNX Runtime's ``.onnx_adapter``, and the same tensors as an ONNX subgraph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AdapterError, MissingExtraError
from ..json_text import json_text
from .edits import Array

#: Key under which the subgraph's metadata holds the adapter's contract, as JSON.
METADATA_KEY = "edgepeft.adapter"


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds: its slot tensors and its contract."""

    tensors: dict[str, Array]
    metadata: dict[str, Any]


def version_number(digest: str) -> int:
    """31 bits of a hash: what fits into the version fields of ``.onnx_adapter``."""
    return int(digest[:8], 16) & 0x7FFFFFFF


def write_onnx_adapter(path: Path, tensors: Mapping[str, Array], *, base_identity: str, slots_hash: str) -> None:
    """Write ONNX Runtime's own adapter format.

    Its two version fields carry the first bits of the base identity and of the slot schema hash, so that a file that lost
    its manifest can still be told apart from one for another base.
    """
    import onnxruntime as ort

    form = ort.AdapterFormat()
    form.set_model_version(version_number(base_identity))
    form.set_adapter_version(version_number(slots_hash))
    form.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()})
    form.export_adapter(str(path))


def read_onnx_adapter(path: Path) -> tuple[dict[str, Array], int, int]:
    """Tensors, model version and adapter version of a ``.onnx_adapter`` file."""
    import onnxruntime as ort

    try:
        form = ort.AdapterFormat.read_adapter(str(path))
        tensors = {name: value.numpy().copy() for name, value in form.get_parameters().items()}
        return tensors, form.get_model_version(), form.get_adapter_version()
    except Exception as error:  # ONNX Runtime raises its own exception types and RuntimeError alike
        raise AdapterError(f"{path} is not a readable .onnx_adapter file (truncated or damaged?): {error}") from error


def write_adapter_onnx(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write the adapter as an ONNX graph without inputs and with one output per slot tensor."""
    import onnx_ir as ir

    nodes, outputs, initializers = [], [], []
    for name, array in tensors.items():
        value = ir.Value(
            name=f"{name}.value",
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(array, name=f"{name}.value"),
        )
        node = ir.node("Identity", [value], name=name)
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, value.type
        nodes.append(node)
        outputs.append(node.outputs[0])
        initializers.append(value)
    graph = ir.Graph([], outputs, nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="adapter")
    model = ir.Model(graph, ir_version=10, producer_name="edgepeft")
    model.metadata_props[METADATA_KEY] = json_text(metadata, indent=None, sort_keys=True)
    ir.save(model, path)


def read_adapter_onnx(path: Path) -> AdapterFile:
    """Read an adapter subgraph; raises :class:`AdapterError` where it is damaged or not one of ours."""
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise MissingExtraError(f"reading {path.name} needs: pip install 'edgepeft[export]' ({error})") from error
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf raises its own types on damaged files
        raise AdapterError(f"{path} is not a readable ONNX file (truncated or damaged?): {error}") from error
    text = model.metadata_props.get(METADATA_KEY)
    if text is None or len(model.graph.inputs):
        raise AdapterError(
            f"{path} is not an adapter that edgepeft exported: it has inputs or lacks the {METADATA_KEY} record"
        )
    tensors = {}
    for output in model.graph.outputs:
        node = output.producer()
        source = node.inputs[0] if node is not None and node.op_type == "Identity" else None
        if source is None or source.const_value is None or output.name is None:
            raise AdapterError(f"{path}: output {output.name} is not a stored tensor")
        tensors[output.name] = np.ascontiguousarray(source.const_value.numpy(), dtype=np.float32)
    return AdapterFile(tensors=tensors, metadata=json.loads(text))
