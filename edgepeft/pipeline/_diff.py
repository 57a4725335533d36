"""``diff``: in what two bundles differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle import AdapterEntry, Bundle, Manifest, Variant, read_bundle


@dataclass(frozen=True)
class Difference:
    """One thing that differs, ``None`` where one of the two has none.

    ``kind`` is ``bundle``, ``variant``, ``adapter`` or ``file``.
    """

    kind: str
    name: str
    what: str
    before: Any
    after: Any


@dataclass(frozen=True)
class BundleDiff:
    """In what two bundles differ, and their sizes on disk in bytes."""

    differences: tuple[Difference, ...]
    before_bytes: int
    after_bytes: int

    @property
    def same(self) -> bool:
        """Whether both hold the same: what they were made from and when is not compared."""
        return not self.differences


def diff(before: str | Path, after: str | Path) -> BundleDiff:
    """Compare two bundles by their manifests: base, slots, variants, adapters and the hash of every file.

    Weights are compared by hash and not read. When and with which versions a bundle was made is left out, and so are reports.

    Args:
        before: A bundle's folder.
        after: Another one's.

    Returns:
        What differs, in the order bundle, variants, adapters, other files.

    Raises:
        BundleError: One of them is no bundle.

    Example:
        >>> for each in diff("last-release", "bundle").differences:
        ...     print(each.kind, each.name, each.what, each.before, each.after)
    """
    first, second = read_bundle(before), read_bundle(after)
    a, b = first.manifest, second.manifest
    found = [
        *_fields("bundle", "", _bundle(a), _bundle(b)),
        *_named("variant", _variants(first), _variants(second)),
        *_named("adapter", _adapters(a), _adapters(b)),
        *_named("file", _files(a), _files(b)),
    ]
    return BundleDiff(tuple(found), first.size(), second.size())


def _bundle(manifest: Manifest) -> dict[str, Any]:
    return {
        "task": manifest.task,
        "mode": manifest.mode,
        "merged": manifest.merged,
        "base source": manifest.base.source,
        "base identity": manifest.base.identity,
        "parameters": manifest.base.parameters,
        "slots": manifest.slots.hash,
        "labels": manifest.labels,
        "problem type": manifest.problem_type,
        "activation": manifest.activation,
        "max length": manifest.max_length,
    }


def _variants(bundle: Bundle) -> dict[str, dict[str, Any]]:
    return {name: _variant(bundle, variant) for name, variant in bundle.manifest.variants.items()}


def _adapters(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {name: _adapter(manifest, entry) for name, entry in manifest.adapters.items()}


def _variant(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    files = bundle.manifest.files
    return {
        "recipe": variant.recipe,
        "quantized share": variant.quantized_share,
        "bytes": bundle.size(variant.files()),
        "content": _content([files[file].sha256 for file in variant.files()]),
    }


def _adapter(manifest: Manifest, entry: AdapterEntry) -> dict[str, Any]:
    return {
        "method": entry.method,
        "source": entry.source,
        "rank": max(entry.ranks.values(), default=0),
        "labels": entry.labels,
        "problem type": entry.problem_type,
        "activation": entry.activation,
        "task": entry.task,
        "bytes": entry.bytes,
        # not of the .onnx file, which holds the same numbers
        "content": manifest.files[entry.onnx_adapter].sha256,
        "refitted": {variant: manifest.files[each.onnx_adapter].sha256 for variant, each in entry.refits.items()},
        "text": {name: manifest.files[file].sha256 for name, file in entry.text.items()},
        "embedding": None if entry.embedding is None else manifest.files[entry.embedding.graph].sha256,
    }


def _files(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The files that belong to no variant and no adapter: tokenizer, configuration, templates."""
    owned = {file for variant in manifest.variants.values() for file in variant.files()}
    owned |= {file for entry in manifest.adapters.values() for file in entry.files()}
    return {file: {"content": entry.sha256} for file, entry in manifest.files.items() if file not in owned}


def _content(hashes: list[str]) -> str | tuple[str, ...]:
    return hashes[0] if len(hashes) == 1 else tuple(hashes)


def _named(
    kind: str, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> list[Difference]:
    found: list[Difference] = []
    for name in dict.fromkeys((*before, *after)):
        if name not in after:
            found.append(Difference(kind, name, "removed", before[name], None))
        elif name not in before:
            found.append(Difference(kind, name, "added", None, after[name]))
        else:
            found.extend(_fields(kind, name, before[name], after[name]))
    return found


def _fields(kind: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    return [Difference(kind, name, what, before[what], after[what]) for what in before if before[what] != after[what]]
