"""``remove``: an adapter or a variant out of a bundle, with its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..bundle import LOCK_TIMEOUT, Bundle
from ..errors import BundleError, InputError
from ._edit import Edit, edit
from ._refitted_files import without_refits


@dataclass(frozen=True)
class Removed:
    """The bundle as it is now, the files that went, and their size in bytes."""

    bundle: Bundle
    files: tuple[str, ...]
    bytes: int


def remove(
    bundle: str | Path, adapter: str | None = None, *, variant: str | None = None, lock_timeout: float = LOCK_TIMEOUT
) -> Removed:
    """Remove an adapter or a variant from a bundle, with its files, all at once.

    Args:
        bundle: the bundle's folder.
        adapter: the adapter to remove; or
        variant: the variant to remove.
        lock_timeout: seconds to wait for another process that changes the bundle.

    Returns:
        The bundle as it is now, with the files that went.

    Raises:
        InputError: neither or both are given.
        UnknownAdapterError: there is no such adapter.
        BundleError: there is no such variant, it is the only one, or another one uses its files.

    Example::

        remove("out", "reviews")
        remove("out", variant="int8")
    """
    if (adapter is None) == (variant is None):
        raise InputError("name what to remove: one adapter (--adapter NAME) or one variant (--variant NAME)")
    with edit(bundle, lock_timeout=lock_timeout) as change:
        if adapter is not None:
            _adapter(change, adapter)
        elif variant is not None:
            _variant(change, variant)
    gone = tuple(sorted(change.before.manifest.files.keys() - change.manifest.files.keys()))
    return Removed(change.after, files=gone, bytes=change.before.size(gone))


def _adapter(change: Edit, name: str) -> None:
    entry = change.before.adapter(name)
    left = {n: e for n, e in change.manifest.adapters.items() if n != name}
    used = {file for e in left.values() for file in e.files()}
    change.drop(set(entry.files()) - used)
    change.stage(adapters=left)


def _variant(change: Edit, name: str) -> None:
    manifest, path = change.manifest, change.before.path
    _, entry = change.before.variant(name)
    left = {n: v for n, v in manifest.variants.items() if n != name}
    if not left:
        raise BundleError(
            f"{name} is the only variant of {path}: nothing would be left to run. Remove the folder instead"
        )
    # One with its cache in 8 bits has a graph of its own over another's weights, which stay with that one.
    lent = set(entry.data) if entry.cache_dtype == "int8" else set()
    for other, kept in left.items():
        if shared := sorted(set(entry.files()) & set(kept.files()) - lent):
            raise BundleError(
                f"variant {name} of {path} cannot be removed: {shared[0]} belongs to {other} too. Remove {other} first"
            )
    change.drop(set(entry.files()) - {file for kept in left.values() for file in kept.files()})
    adapters = without_refits(change, name)
    defaults = manifest.slot_defaults
    if defaults is not None and not any(kept.input_file for kept in left.values()):
        change.drop([defaults])
        defaults = None
    provenance = dict(manifest.provenance)
    if calibration := {n: c for n, c in provenance.pop("calibration", {}).items() if n != name}:
        provenance["calibration"] = calibration
    change.stage(variants=left, adapters=adapters, slot_defaults=defaults, provenance=provenance)
