"""The files of an adapter that was fitted once more to one variant, beside those that serve all variants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.files import in_form, read_adapter_onnx, write_adapter_onnx, write_onnx_adapter
from ..bundle import AdapterEntry, Refit
from ..bundle.adapter_forms import AdapterForm
from ._edit import Edit


def write_refit(
    folder: Path,
    name: str,
    variant: str,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    loss: tuple[float, float],
    form: AdapterForm,
    axes: Mapping[str, int],
) -> Refit:
    """Write the tensors of an adapter for one variant below ``folder``, in both forms; their entry.

    ``metadata`` is the adapter's contract as its ``.onnx`` file has it, ``loss`` how far it was from fp32 before and after,
    ``form`` how tensors are stored and ``axes`` the rank's axis of each factor.
    """
    files = {suffix: f"adapters/{name}/{variant}.{suffix}" for suffix in ("onnx_adapter", "onnx")}
    (folder / "adapters" / name).mkdir(parents=True, exist_ok=True)
    for file in files.values():
        (folder / file).unlink(missing_ok=True)
    path = folder / files["onnx_adapter"]
    held = in_form(path, tensors, form, axes)
    write_onnx_adapter(path, held, base_identity=metadata["base_identity"], slots_hash=metadata["slots_hash"])
    write_adapter_onnx(folder / files["onnx"], held, metadata)
    return Refit(**files, bytes=path.stat().st_size, loss=loss)


def with_refits(
    folder: Path, name: str, before: AdapterEntry, written: AdapterEntry, axes: Mapping[str, int]
) -> AdapterEntry:
    """``written``, an adapter's entry in another form or with another contract, with what ``before`` had for variants."""
    metadata = read_adapter_onnx(folder / written.onnx).metadata
    refits = {
        variant: write_refit(
            folder, name, variant, read_adapter_onnx(folder / each.onnx).tensors, metadata, loss=each.loss,
            form=written.form, axes=axes,
        )
        for variant, each in before.refits.items()
    }  # fmt: skip
    return written.model_copy(update={"refits": refits})


def without_refits(change: Edit, variant: str) -> dict[str, AdapterEntry]:
    """The adapters of a change without what was fitted to a variant that goes; those files are dropped."""
    adapters = {}
    for name, entry in change.manifest.adapters.items():
        kept = entry.only(entry.refits.keys() - {variant})
        change.drop(set(entry.files()) - set(kept.files()))
        adapters[name] = kept
    return adapters
