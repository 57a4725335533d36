"""``rename``: another name for an adapter of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bundle import LOCK_TIMEOUT, AdapterEntry, Bundle, check_name
from ..bundle.embedding import ADAPTERS_FOLDER
from ..bundle.names import check_distinct
from ..errors import InputError
from ._edit import edit


def rename(bundle: str | Path, old: str, new: str, *, lock_timeout: float = LOCK_TIMEOUT) -> Bundle:
    """Give an adapter of a bundle another name. Its files are renamed with it; what they hold is unchanged.

    Args:
        bundle: The bundle's folder.
        old: The adapter's name.
        new: The name it gets.
        lock_timeout: Seconds to wait for another process that changes the bundle.

    Returns:
        The bundle as it is now. The adapter keeps its place among the others.

    Raises:
        UnknownAdapterError: The bundle has no adapter ``old``.
        InputError: The new name cannot be used, or another adapter has it.
        BusyBundleError: Another process changes the bundle and did not end in time.

    Example:
        >>> rename("bundle", "reviews", "product-reviews")
    """
    try:
        check_name(new)
    except ValueError as error:
        raise InputError(f"the new name: {error}") from error
    with edit(bundle, lock_timeout=lock_timeout) as change:
        entry = change.before.adapter(old)
        others = [name for name in change.manifest.adapters if name != old]
        try:
            check_distinct((*others, new), "adapters")
        except ValueError as error:
            raise InputError(f"{change.before.path}: {error}; choose another name") from error
        if new in others:
            raise InputError(
                f"{change.before.path} already has an adapter {new!r}; remove it first, or choose another name"
            )
        used = {file for name in others for file in change.manifest.adapters[name].files()}
        moves = {file: _renamed(file, old, new) for file in entry.files() if file not in used}
        moves = {file: target for file, target in moves.items() if target not in {file, *change.manifest.files}}
        for file, target in moves.items():
            path = change.folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            (change.folder / file).rename(path)
        change.drop(moves)
        for folder in {Path(file).parent for file in moves}:
            if not any((change.folder / folder).iterdir()):
                (change.folder / folder).rmdir()
        adapters = {
            new if name == old else name: _moved(each, moves) if name == old else each
            for name, each in change.manifest.adapters.items()
        }
        change.stage(
            written=moves.values(), adapters=adapters, provenance=_provenance(change.manifest.provenance, old, new)
        )
    return change.after


def _renamed(file: str, old: str, new: str) -> str:
    """The path of an adapter's file under its new name; as it is where it does not carry the old one."""
    for folder in ("adapters", ADAPTERS_FOLDER):
        for end in ("/", "."):
            if file.startswith(start := f"{folder}/{old}{end}"):
                return f"{folder}/{new}{end}{file.removeprefix(start)}"
    return file


def _moved(entry: AdapterEntry, moves: dict[str, str]) -> AdapterEntry:
    def now(file: str) -> str:
        return moves.get(file, file)

    changes: dict[str, Any] = {
        "onnx_adapter": now(entry.onnx_adapter),
        "onnx": now(entry.onnx),
        "text": {name: now(file) for name, file in entry.text.items()},
        "refits": {
            variant: each.model_copy(update={"onnx_adapter": now(each.onnx_adapter), "onnx": now(each.onnx)})
            for variant, each in entry.refits.items()
        },
    }
    if entry.embedding is not None:
        changes["embedding"] = entry.embedding.model_copy(update={"graph": now(entry.embedding.graph)})
    return entry.model_copy(update=changes)


def _provenance(provenance: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """What is recorded of each adapter under its name: the texts that activations were measured on."""
    calibration = {
        variant: {**record, "texts": {new if name == old else name: count for name, count in record["texts"].items()}}
        if isinstance(record, dict) and isinstance(record.get("texts"), dict)
        else record
        for variant, record in provenance.get("calibration", {}).items()
    }
    return {**provenance, "calibration": calibration} if calibration else provenance
