"""An adapter's files in a bundle, and its entry in the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from ..adapters.edits import Adapter, Array
from ..adapters.files import write_adapter_onnx, write_onnx_adapter
from ..adapters.fill import FilledSlots, fill_slots
from ..adapters.prefix import fill_prefix
from ..bundle import (
    AdapterEntry,
    SlotTable,
)
from ..bundle.manifest import TextName
from ..bundle.slots import Dim

#: The text files that an adapter may bring.
TEXT_NAMES: tuple[str, ...] = get_args(TextName)


@dataclass(frozen=True)
class Filled:
    """An adapter with the tensors it fills the slots with."""

    adapter: Adapter
    slots: FilledSlots
    #: Its states before the sequence, by tensor name.
    prefix: Mapping[str, Array] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Array]:
        """What the adapter's files hold."""
        return {**self.slots.tensors, **self.prefix}


def fill(
    adapter: Adapter, table: SlotTable, fresh: Sequence[str], prefix: Mapping[str, tuple[Dim, ...]],
    config: Mapping[str, Any], max_length: int | None,
) -> Filled:  # fmt: skip
    """``adapter`` over a base: its slots, and its states before the sequence where ``prefix`` says what the base takes."""
    slots = fill_slots(adapter, table, fresh=fresh)
    return Filled(adapter, slots, fill_prefix(adapter, prefix, config, max_length))


def adapter_metadata(filled: Filled, *, base_identity: str, slots_hash: str) -> dict[str, Any]:
    """The adapter's contract, as its ``.onnx`` file carries it; enough to add that file to another copy of the base."""
    adapter = filled.adapter
    labels = adapter.labels
    if labels is None and filled.slots.labels is not None:
        labels = tuple(f"LABEL_{i}" for i in range(filled.slots.labels))
    return {
        "method": adapter.method,
        "source": adapter.source,
        "base_identity": base_identity,
        "slots_hash": slots_hash,
        "ranks": filled.slots.ranks,
        "labels": labels,
        "scalable": adapter.scalable,
        "per_row": filled.slots.per_row and not filled.prefix,
        "prefix_length": adapter.prefix.states.shape[3] if adapter.prefix is not None else 0,
        "residual": None if adapter.exactness.exact else adapter.exactness.residual,
    }


def text_hashes(text: Mapping[str, str]) -> dict[str, str]:
    """The sha256 of each text file, by which an adapter's ``.onnx`` file names those that belong to it."""
    return {file: hashlib.sha256(content.encode()).hexdigest() for file, content in text.items()}


def write_text(folder: Path, text: Mapping[str, str]) -> None:
    """Write an adapter's text files into a folder of their own, in place of those of an earlier one; none makes no folder."""
    for file in TEXT_NAMES:
        (folder / file).unlink(missing_ok=True)
    for file, content in text.items():
        folder.mkdir(exist_ok=True)
        (folder / file).write_text(content, encoding="utf-8", newline="")


def write_adapter(
    folder: Path,
    name: str,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any],
    text: Mapping[str, str] = MappingProxyType({}),
) -> AdapterEntry:
    """Write an adapter's files below ``folder`` (replacing old ones, never writing into them); its entry.

    ``text`` are the text files of its own, by name: they stand in a folder beside its tensors.
    """
    (folder / "adapters").mkdir(exist_ok=True)
    files = {"onnx_adapter": f"adapters/{name}.onnx_adapter", "onnx": f"adapters/{name}.onnx"}
    for file in files.values():
        (folder / file).unlink(missing_ok=True)
    write_text(folder / "adapters" / name, text)
    metadata = {**metadata, "text": text_hashes(text)}
    write_onnx_adapter(
        folder / files["onnx_adapter"],
        tensors,
        base_identity=metadata["base_identity"],
        slots_hash=metadata["slots_hash"],
    )
    write_adapter_onnx(folder / files["onnx"], tensors, metadata)
    return AdapterEntry.model_validate(
        {
            **files,
            **metadata,
            "text": {file: f"adapters/{name}/{file}" for file in text},
            "tensors": {tensor: tuple(array.shape) for tensor, array in tensors.items()},
            "bytes": (folder / files["onnx_adapter"]).stat().st_size,
        }
    )
