"""How large an adapter's files will be, told from its checkpoint and the shapes of its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..adapters.checkpoint import Checkpoint
from ._stored_adapters import Wanted

#: Layers that captured bases hold in one matrix, which has one slot: factors of all that are edited stand side by side in it.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
#: About what a tensor takes beside its numbers in each file: where it lies, its shape and, so many times, its name.
_ENTRY, _NAMES = {"onnx_adapter": 68, "onnx": 90}, {"onnx_adapter": 1, "onnx": 3}
#: What a node takes beside a name that expands a tensor.
_EXPANDED = 40
#: The contract in the ``.onnx`` file.
_CONTRACT = 1200
_A, _B = ".lora_A.weight", ".lora_B.weight"

Shapes = Mapping[str, Sequence[int]]


def adapter_bytes(checkpoint: Checkpoint, form: Wanted, shapes: Shapes) -> dict[str, int]:
    """Bytes of an adapter's ``onnx_adapter`` and ``onnx`` file.

    Args:
        checkpoint: The adapter.
        form: How its tensors are stored; ``auto`` counts as ``fp32``, which it may come to.
        shapes: Shapes of the base's tensors by name.
    """
    kind = "fp32" if form == "auto" else form
    slots, others = _slots(checkpoint.tensors, shapes)
    sizes: list[tuple[str, int]] = []
    for name, (rank, width, out) in slots.items():
        for factor, numbers in ((f"{name}.lora_A", width * rank), (f"{name}.lora_B", rank * out)):
            sizes.append((factor, numbers * _width(kind, factor=True)))
            if kind == "int8":
                sizes.append((f"{factor}/scale", 4 * rank))
    sizes += [(name, size * _width(kind, factor=False)) for name, size in others.items()]
    total = sum(size for _, size in sizes)
    found = {
        file: total + sum(_ENTRY[file] + _NAMES[file] * len(name) for name, _ in sizes)
        for file in ("onnx_adapter", "onnx")
    }
    found["onnx"] += _CONTRACT
    if kind != "fp32":  # nodes that expand it
        found["onnx"] += sum(_EXPANDED + len(name) for name, _ in sizes)
    return found


def _width(form: str, *, factor: bool) -> int:
    """Bytes of a number."""
    return {"fp32": 4, "fp16": 2, "int8": 1 if factor else 2}[form]


def _slots(tensors: Mapping[str, np.ndarray], shapes: Shapes) -> tuple[dict[str, tuple[int, int, int]], dict[str, int]]:
    """Rank, inputs and outputs of each slot of an adapter in LoRA's form; how many numbers its other tensors have."""
    pairs = {
        name.removesuffix(_A): (array, tensors[f"{name.removesuffix(_A)}{_B}"])
        for name, array in tensors.items()
        if name.endswith(_A) and array.ndim == 2 and f"{name.removesuffix(_A)}{_B}" in tensors
    }
    slots: dict[str, tuple[int, int, int]] = {}
    for site, (first, second) in pairs.items():
        parent, _, leaf = site.rpartition(".")
        group = next((each for each in _TOGETHER if leaf in each), (leaf,))
        name = f"{parent}.{'_'.join(group)}"
        rank, width = first.shape
        if name in slots:
            slots[name] = (slots[name][0] + rank, width, slots[name][2])
            continue
        outs = [
            pairs[f"{parent}.{part}"][1].shape[0]
            if f"{parent}.{part}" in pairs
            else _outputs(f"{parent}.{part}", shapes)
            for part in group
        ]
        together = all(outs)
        slots[name if together else site] = (rank, width, sum(outs) if together else second.shape[0])
    used = {f"{site}{end}" for site in pairs for end in (_A, _B)}
    return slots, {name: array.size for name, array in tensors.items() if name not in used}


def _outputs(site: str, shapes: Shapes) -> int:
    """Outputs of a layer that the adapter leaves; 0 where the base has none of that name, with or without its prefix."""
    parts = f"{site}.weight".split(".")
    for skipped in range(len(parts)):
        shape = shapes.get(".".join(parts[skipped:]))
        if shape is not None:
            return int(shape[0])
    return 0
