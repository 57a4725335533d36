"""Adapter files: ONNX Runtime's ``.onnx_adapter``, and the same tensors as an ONNX subgraph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..bundle.embedding import settled
from ..bundle.manifest import AdapterEntry, explain
from ..errors import AdapterError, MissingExtraError
from ..json_text import json_text
from ..strict_json import parse_json
from .edits import Array

#: Most bytes of an adapter's file: what protobuf, which ``.onnx`` is written in, holds.
MAX_FILE_BYTES = 2**31

#: Key under which the subgraph's metadata holds the adapter's contract, as JSON.
METADATA_KEY = "edgepeft.adapter"


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds: its slot tensors and its contract."""

    tensors: dict[str, Array]
    metadata: dict[str, Any]


def contract_of(found: AdapterFile, path: Path) -> dict[str, Any]:
    """The contract in an adapter's ``.onnx`` file, with every key that an entry of a manifest needs.

    Raises:
        AdapterError: Names the file and each key that is missing or wrong.
    """
    metadata, where = found.metadata, {"onnx_adapter": "x", "onnx": "x", "bytes": 0}
    shapes = {tensor: tuple(array.shape) for tensor, array in found.tensors.items()}
    clash = sorted(metadata.keys() & {*where, "tensors"})
    try:
        if clash:
            raise AdapterError(f"{path}: its {METADATA_KEY} record holds {clash[0]}, which is not the adapter's to say")
        AdapterEntry.model_validate({**settled(metadata, "x")[0], **where, "tensors": shapes})
    except ValidationError as error:
        raise AdapterError(
            f"{path}: its {METADATA_KEY} record is wrong: {explain(error)}. Add the adapter from its PEFT checkpoint."
        ) from error
    except ValueError as error:
        raise AdapterError(f"{path}: {error}. Add the adapter from its PEFT checkpoint.") from error
    return metadata


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

    _check_size(path)
    try:
        form = ort.AdapterFormat.read_adapter(str(path))
        tensors = {name: value.numpy().copy() for name, value in form.get_parameters().items()}
        return tensors, form.get_model_version(), form.get_adapter_version()
    except Exception as error:  # ONNX Runtime raises its own exception types and RuntimeError alike
        raise AdapterError(f"{path} is not a readable .onnx_adapter file (truncated or damaged?): {error}") from error


def _check_size(path: Path) -> None:
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise AdapterError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes, which no adapter file can be")


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
    _check_size(path)
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf raises its own types on damaged files
        raise AdapterError(f"{path} is not a readable ONNX file (truncated or damaged?): {error}") from error
    text = model.metadata_props.get(METADATA_KEY)
    if text is None or len(model.graph.inputs):
        raise AdapterError(
            f"{path} is not an adapter that edgepeft exported: it has inputs or lacks the {METADATA_KEY} record"
        )
    metadata = parse_json(text, f"{path}, its {METADATA_KEY} record", error=AdapterError)
    if not isinstance(metadata, dict):
        raise AdapterError(f"{path}: its {METADATA_KEY} record must be an object")
    tensors: dict[str, Array] = {}
    for output in model.graph.outputs:
        node = output.producer()
        source = node.inputs[0] if node is not None and node.op_type == "Identity" else None
        if source is None or source.const_value is None or output.name is None:
            raise AdapterError(f"{path}: output {output.name} is not a stored tensor")
        if output.name in tensors:
            raise AdapterError(f"{path} has two outputs {output.name}")
        tensors[output.name] = _stored(source.const_value, f"{path}: output {output.name}")
    return AdapterFile(tensors=tensors, metadata=metadata)


def _stored(tensor: Any, what: str) -> Array:
    """The numbers of a tensor that lies in the file itself."""
    import onnx_ir as ir

    if isinstance(tensor, ir.ExternalTensor):
        raise AdapterError(f"{what} is stored in another file ({tensor.location}), which an adapter's never is")
    if tensor.dtype != ir.DataType.FLOAT:
        raise AdapterError(f"{what} is {tensor.dtype.name.lower()}, slots take float32")
    try:
        # A view of the file's bytes: what its dimensions claim is not allocated.
        array = np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
    except Exception as error:  # numpy and onnx_ir raise their own over dimensions that do not fit the bytes
        raise AdapterError(f"{what} does not hold what its dimensions {list(tensor.shape)} say: {error}") from error
    if array.shape != tuple(tensor.shape):  # numpy works out a negative dimension by itself
        raise AdapterError(f"{what} does not hold what its dimensions {list(tensor.shape)} say")
    return array
