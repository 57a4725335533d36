"""Opening a bundle: the manifest is read strictly and every file is checked against it before it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import (
    AdapterMismatchError,
    BundleError,
    CorruptBundleError,
    InputError,
    ManifestError,
    UnknownAdapterError,
)
from .adapter_checks import check_labels, check_ranks
from .manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, AdapterEntry, FileEntry, Manifest, Variant, parse_manifest
from .slots import shape_fits
from .transaction import recover

_CHUNK = 1 << 20


def hash_file(path: Path) -> FileEntry:
    """sha256 and size of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return FileEntry(sha256=digest.hexdigest(), bytes=path.stat().st_size)


@dataclass(frozen=True)
class Bundle:
    """A bundle folder and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, relative: str) -> Path:
        """The path of a file of the bundle."""
        return self.path / relative

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Check files (all by default) against the manifest's sizes and hashes; :class:`CorruptBundleError` names one."""
        root = self.path.resolve()
        for relative in self.manifest.files if files is None else files:
            entry = self.manifest.files[relative]
            path = self.file(relative)
            if not path.is_file():
                raise CorruptBundleError(f"{path} is missing from the bundle; copy the whole folder again")
            if not path.resolve().is_relative_to(root):
                raise CorruptBundleError(f"{path} is a link that leaves the bundle folder")
            size = path.stat().st_size
            if size != entry.bytes:
                raise CorruptBundleError(
                    f"{path} has {size} bytes, the manifest says {entry.bytes}; copy the bundle again"
                )
            found = hash_file(path).sha256
            if found != entry.sha256:
                raise CorruptBundleError(
                    f"{path} was changed after the bundle was written: sha256 {found[:16]}…, the manifest says "
                    f"{entry.sha256[:16]}…. Copy the bundle again, or export it again if the change was meant."
                )

    def variant(self, name: str | None = None) -> tuple[str, Variant]:
        """A variant by name; by default ``fp32``, else the first. Raises :class:`BundleError` naming those there are."""
        variants = self.manifest.variants
        name = name or ("fp32" if "fp32" in variants else next(iter(variants)))
        if name not in variants:
            raise BundleError(f"{self.path} has no variant {name!r}; it has: {', '.join(variants)}")
        return name, variants[name]

    def variant_files(self, name: str) -> tuple[str, ...]:
        """The files that a variant needs: graph and weights."""
        variant = self.manifest.variants[name]
        return (variant.file, *variant.data)

    def adapter(self, name: str) -> AdapterEntry:
        """An adapter by name; :class:`UnknownAdapterError` lists those there are."""
        try:
            return self.manifest.adapters[name]
        except KeyError:
            known = ", ".join(self.manifest.adapters) or "none"
            raise UnknownAdapterError(f"{self.path} has no adapter {name!r}; it has: {known}") from None

    def slot_adapter(self, name: str) -> AdapterEntry:
        """An adapter whose tensors a graph can hold; :class:`InputError` for one that stands before the sequence."""
        entry = self.adapter(name)
        if entry.prefix_length:
            raise InputError(
                f"adapter {name!r} puts {entry.prefix_length} states before the sequence: it fills no slots, so it cannot be part "
                "of a graph. Feed its tensors as the first past_key_values."
            )
        return entry

    def size(self, files: Iterable[str] | None = None) -> int:
        """Bytes of the given files, or of the whole bundle."""
        return sum(self.manifest.files[name].bytes for name in (self.manifest.files if files is None else files))


def bundle_path(path: str | Path) -> Path:
    """``path`` as it may be used while the folder is replaced: what is said from inside a bundle (``.``, ``..``) in full.

    Raises :class:`BundleError` for what cannot be a path, and where the current folder is gone.
    """
    path = Path(path)
    try:
        if b"\0" in os.fsencode(path):
            raise BundleError(f"no bundle at {str(path)[:200]!r}: no path holds a NUL")
        full = path if path.name and ".." not in path.parts else path.resolve()
        full.is_dir()
    except UnicodeEncodeError as error:
        raise BundleError(f"no bundle at {str(path)[:200]!r}: it is not valid Unicode") from error
    except FileNotFoundError:
        raise BundleError(f"no bundle at {path}: the current folder is gone; cd into it again") from None
    except OSError as error:
        raise BundleError(f"no bundle at {str(path)[:200]}: {error.strerror or error}") from error
    return full


def read_bundle(path: str | Path) -> Bundle:
    """Read the manifest of a bundle folder; files are checked when they are used, or by :meth:`Bundle.verify`.

    Raises :class:`BundleError` where there is no bundle and :class:`ManifestError` where its manifest is not valid.
    """
    path = bundle_path(path)
    recover(path)
    manifest = path / MANIFEST_NAME
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}: the folder does not exist")
    if not manifest.is_file():
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST_NAME}. Make one with `edgepeft export`.")
    try:
        with manifest.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read {manifest}: {error}") from error
    bundle = Bundle(path=path, manifest=parse_manifest(text, str(manifest)))
    check_adapters(bundle)
    return bundle


def check_adapters(bundle: Bundle) -> None:
    """Refuse adapters whose contract is not with this base: identity, slots, tensor names and shapes."""
    manifest = bundle.manifest
    shapes = {**manifest.slots.tensors(), **manifest.prefix_tensors()}
    for name, entry in manifest.adapters.items():
        for what, found, expected in (
            ("base identity", entry.base_identity, manifest.base.identity),
            ("slot schema", entry.slots_hash, manifest.slots.hash),
        ):
            if found != expected:
                raise AdapterMismatchError(
                    f"{bundle.path}: adapter {name!r} was made for {what} {found[:16]}…, this base has {expected[:16]}…. "
                    "Remove it, or add it again from its checkpoint."
                )
        for tensor, shape in entry.tensors.items():
            expected_shape = shapes.get(tensor)
            if expected_shape is None:
                raise AdapterMismatchError(
                    f"{bundle.path}: adapter {name!r} fills {tensor}, which is not a slot of this base"
                )
            if not shape_fits(shape, expected_shape):
                raise AdapterMismatchError(
                    f"{bundle.path}: adapter {name!r}, {tensor} has shape {shape}, the slot takes {expected_shape}"
                )
        what = f"{bundle.path}: adapter {name!r}"
        check_prefix_tensors(what, entry.tensors, entry.prefix_length, manifest)
        check_ranks(what, entry.tensors, entry.ranks, manifest)
        check_labels(what, entry.tensors, entry.labels, manifest)


def check_prefix_tensors(what: str, tensors: Mapping[str, tuple[int, ...]], length: int, manifest: Manifest) -> None:
    """Refuse states before the sequence that leave out a layer or are not ``length`` long: layers would disagree."""
    expected = manifest.prefix_tensors()
    found = {name: shape[2] for name, shape in tensors.items() if name in expected}
    wanted = dict.fromkeys(expected, length) if length else {}
    if length and not expected:
        raise AdapterMismatchError(
            f"{what} says that it puts {length} states before the sequence, and this base has no cache that takes them. "
            "Add it again from its checkpoint."
        )
    if found != wanted:
        odd = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
        raise AdapterMismatchError(
            f"{what} says that it puts {length} states before the sequence, at {odd} it has {found.get(odd, 'none')}. "
            "Add it again from its checkpoint."
        )
