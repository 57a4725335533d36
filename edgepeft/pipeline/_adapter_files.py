"""An adapter's files in a bundle, and its entry in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..adapters.edits import Adapter, Array
from ..adapters.files import in_form, write_adapter_onnx, write_onnx_adapter
from ..adapters.fill import FilledSlots, fill_slots
from ..adapters.prefix import fill_prefix
from ..bundle import AdapterEntry, Head, SlotTable
from ..bundle.adapter_forms import AdapterForm
from ..bundle.embedding import ADAPTERS_FOLDER, settled
from ..bundle.heads import inherited
from ..bundle.manifest import TaskEntry
from ..bundle.slots import Dim
from ._text import text_hashes, write_text


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


def required(tasks: Mapping[str, TaskEntry], adapter: Adapter, fresh: Sequence[str]) -> Sequence[str]:
    """What an adapter must bring: all that the checkpoint lacks, or of several tasks what its own one reads."""
    entry = tasks.get(adapter.task or "")
    return fresh if entry is None else entry.fresh


def adapter_metadata(
    filled: Filled, *, base_identity: str, slots_hash: str, base: Head, table: SlotTable
) -> dict[str, Any]:
    """The adapter's contract, as its ``.onnx`` file carries it; enough to add that file to another copy of the base.

    ``base`` is the base's own head, from which the adapter's takes what nobody said of it.
    """
    adapter = filled.adapter
    own = Head(adapter.labels, adapter.problem_type, adapter.activation, adapter.task)
    head = inherited(own, base, filled.slots.labels, [slot.parameter for slot in table.overrides])
    return {
        "method": adapter.method,
        "source": adapter.source,
        "base_identity": base_identity,
        "slots_hash": slots_hash,
        "ranks": filled.slots.ranks,
        "labels": head.labels,
        "problem_type": head.problem_type,
        "activation": head.activation,
        "task": adapter.task,
        "scalable": adapter.scalable,
        "per_row": filled.slots.per_row and not filled.prefix,
        "prefix_length": adapter.prefix.states.shape[3] if adapter.prefix is not None else 0,
        "residual": None if adapter.exactness.exact else adapter.exactness.residual,
    }


def write_adapter(
    folder: Path,
    name: str,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any],
    text: Mapping[str, str] = MappingProxyType({}),
    *,
    form: AdapterForm = "fp32",
    axes: Mapping[str, int] = MappingProxyType({}),
) -> AdapterEntry:
    """Write an adapter's files below ``folder`` (replacing old ones, never writing into them); its entry.

    ``text`` are the text files of its own, by name: they stand in a folder beside its tensors. ``form`` is how tensors are
    stored, and ``axes`` the rank's axis of each factor. Raises :class:`AdapterError` where the form cannot hold a number.
    """
    (folder / "adapters").mkdir(exist_ok=True)
    files = {"onnx_adapter": f"adapters/{name}.onnx_adapter", "onnx": f"adapters/{name}.onnx"}
    for file in files.values():
        (folder / file).unlink(missing_ok=True)
    write_text(folder / "adapters" / name, text)
    metadata = {**metadata, "text": text_hashes(text)}
    held = in_form(folder / files["onnx_adapter"], tensors, form, axes)
    write_onnx_adapter(
        folder / files["onnx_adapter"],
        held,
        base_identity=metadata["base_identity"],
        slots_hash=metadata["slots_hash"],
    )
    write_adapter_onnx(folder / files["onnx"], held, metadata)
    stem = f"{ADAPTERS_FOLDER}/{name}"
    for suffix in (".onnx", ".ort"):
        (folder / f"{stem}{suffix}").unlink(missing_ok=True)
    contract, content = settled(metadata, stem)
    if content is not None:
        graph = folder / contract["embedding"]["graph"]
        graph.parent.mkdir(parents=True, exist_ok=True)
        graph.write_bytes(content)
    return AdapterEntry.model_validate(
        {
            **files,
            **contract,
            "form": form,
            "text": {file: f"adapters/{name}/{file}" for file in text},
            "tensors": {tensor: tuple(array.shape) for tensor, array in tensors.items()},
            "bytes": (folder / files["onnx_adapter"]).stat().st_size,
        }
    )
