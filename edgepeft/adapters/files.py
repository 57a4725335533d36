"""Adapter files: ONNX Runtime's ``.onnx_adapter``, and the same tensors as an ONNX subgraph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..bundle.adapter_forms import AdapterForm, expanded, stored
from ..bundle.embedding import settled
from ..bundle.manifest import AdapterEntry, explain
from ..errors import AdapterError
from ..json_text import json_text
from ..strict_json import parse_json
from .edits import Array
from .onnx_message import dump_subgraph, load_subgraph

#: Most bytes of an adapter's file: what protobuf, which ``.onnx`` is written in, holds.
MAX_FILE_BYTES = 2**31

#: Key under which the subgraph's metadata holds the adapter's contract, as JSON.
METADATA_KEY = "edgepeft.adapter"


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds: its slot tensors, expanded to float32, and its contract."""

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


def in_form(path: Path, tensors: Mapping[str, Array], form: AdapterForm, axes: Mapping[str, int]) -> dict[str, Array]:
    """``tensors`` as the files of a form store them (:func:`~edgepeft.bundle.adapter_forms.stored`).

    Raises:
        AdapterError: The form cannot hold a number; the message names its tensor.
    """
    try:
        return stored(tensors, form, axes)
    except ValueError as error:
        raise AdapterError(f"{path} cannot be written in {form}: {error}. Keep it in fp32") from error


def write_onnx_adapter(path: Path, tensors: Mapping[str, Array], *, base_identity: str, slots_hash: str) -> None:
    """Write ONNX Runtime's own adapter format, tensors as they are (:func:`in_form` gives other forms than float32).

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
    """Tensors (expanded to float32), model version and adapter version of a ``.onnx_adapter`` file."""
    import onnxruntime as ort

    _check_size(path)
    try:
        form = ort.AdapterFormat.read_adapter(str(path))
        tensors = {name: value.numpy().copy() for name, value in form.get_parameters().items()}
        return expanded(tensors), form.get_model_version(), form.get_adapter_version()
    except Exception as error:  # ONNX Runtime raises its own exception types and RuntimeError alike
        raise AdapterError(f"{path} is not a readable .onnx_adapter file (truncated or damaged?): {error}") from error


def _check_size(path: Path) -> None:
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise AdapterError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes, which no adapter file can be")


def write_adapter_onnx(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write the adapter as an ONNX graph without inputs and with one output per slot tensor, which it expands to float32."""
    record = json_text(metadata, indent=None, sort_keys=True)
    try:
        content = dump_subgraph(tensors, {METADATA_KEY: record})
    except ValueError as error:
        raise AdapterError(f"{path} cannot be written as an ONNX file: {error}") from error
    path.write_bytes(content)


def read_adapter_onnx(path: Path) -> AdapterFile:
    """Read an adapter subgraph; raises :class:`AdapterError` where it is damaged or not one of ours."""
    _check_size(path)
    try:
        graph = load_subgraph(path.read_bytes())
    except (OSError, ValueError) as error:  # UnicodeDecodeError, of a name that is no text, is a ValueError
        raise AdapterError(f"{path} is not a readable ONNX file (truncated or damaged?): {error}") from error
    text = graph.metadata.get(METADATA_KEY)
    if text is None or graph.has_inputs:
        raise AdapterError(
            f"{path} is not an adapter that edgepeft exported: it has inputs or lacks the {METADATA_KEY} record"
        )
    metadata = parse_json(text, f"{path}, its {METADATA_KEY} record", error=AdapterError)
    if not isinstance(metadata, dict):
        raise AdapterError(f"{path}: its {METADATA_KEY} record must be an object")
    tensors: dict[str, Array] = {}
    for name, found in graph.outputs:
        if isinstance(found, str):
            raise AdapterError(f"{path}: output {name} {found}")
        if name in tensors:
            raise AdapterError(f"{path} has two outputs {name}")
        tensors[name] = found
    try:
        return AdapterFile(tensors=expanded(tensors), metadata=metadata)
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error
