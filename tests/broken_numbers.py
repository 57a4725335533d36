"""A bundle whose adapter, or whose base, holds NaN or infinity under hashes that are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgepeft.adapters.files import read_onnx_adapter, write_onnx_adapter
from edgepeft.bundle import MANIFEST_NAME, hash_file, read_bundle


def break_adapter(bundle: Path, name: str, number: float = float("nan")) -> Path:
    """Put ``number`` into every factor of an adapter and hash its file again."""
    opened = read_bundle(bundle)
    entry, manifest = opened.manifest.adapters[name], opened.manifest
    path = bundle / entry.onnx_adapter
    tensors, _, _ = read_onnx_adapter(path)
    second = {slot.b for slot in manifest.slots.factored}
    broken = {tensor: np.full_like(array, number) if tensor in second else array for tensor, array in tensors.items()}
    path.unlink()
    write_onnx_adapter(path, broken, base_identity=manifest.base.identity, slots_hash=manifest.slots.hash)
    raw = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    found = hash_file(path)
    raw["files"][entry.onnx_adapter] = {"sha256": found.sha256, "bytes": found.bytes}
    (bundle / MANIFEST_NAME).write_text(json.dumps(raw), "utf-8")
    return bundle


def break_weight(bundle: Path, part: str, number: float = float("nan")) -> str:
    """Put ``number`` into the first matrix of the fp32 graph whose name has ``part``, and hash the files again; its name."""
    manifest = read_bundle(bundle).manifest
    whole = manifest.variants["fp32"]
    model = ir.load(bundle / whole.file)
    ir.external_data.load_to_model(model)
    slots = manifest.slots.tensors()
    value = next(
        each
        for name, each in model.graph.initializers.items()
        if part in name and name not in slots and each.const_value is not None and len(each.const_value.shape) == 2
    )
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[1, 2] = number
    value.const_value = ir.tensor(array, name=value.name)
    for file in (whole.file, *whole.data):
        (bundle / file).unlink()
    ir.save(model, bundle / whole.file, external_data=Path(whole.data[0]).name)
    raw = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    for file in (whole.file, *whole.data):
        found = hash_file(bundle / file)
        raw["files"][file] = {"sha256": found.sha256, "bytes": found.bytes}
    (bundle / MANIFEST_NAME).write_text(json.dumps(raw), "utf-8")
    return value.name or ""
