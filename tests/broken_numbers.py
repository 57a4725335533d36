"""A bundle whose adapter holds NaN or infinity under hashes that are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

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
