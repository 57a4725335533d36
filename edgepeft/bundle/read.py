"""Opening a bundle: the manifest is read strictly and every file is checked against it before it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import (
    AdapterMismatchError,
    BundleError,
    CorruptBundleError,
    InputError,
    ManifestError,
    UnknownAdapterError,
)
from ..html_table import html_table
from ..spelling import did_you_mean
from ..strict_json import kind, parse_json
from ..units import MB
from .adapter_checks import check_labels, check_ranks
from .embedding import OwnEmbedding
from .graphs import OpenGraph, check_graph, open_graph
from .loads import Slots, loaded_files, variant_files
from .lock import real_path
from .manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, AdapterEntry, FileEntry, Manifest, Variant, parse_manifest
from .opening import open_inside
from .own_text import NO_TEXT, OwnText
from .reread import rereading
from .slots import shape_fits
from .transaction import recover
from .verified import BundleFiles, VerifiedFile, Verify, check_mode

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
    #: When a file is hashed that is opened to be used: see :func:`read_bundle`.
    verification: Verify = "changed"

    def _repr_html_(self) -> str:
        """What notebooks show: variants and adapters with their sizes in MB."""
        manifest = self.manifest
        rows = [("variant", n, v.recipe, self.size(v.files()) / MB) for n, v in manifest.variants.items()]
        rows += [("adapter", n, e.method, e.bytes / MB) for n, e in manifest.adapters.items()]
        title = f"{self.path}: {manifest.task}, {manifest.mode}, {self.size() / MB:.1f} MB on disk"
        return html_table(title, ("", "name", "made by", "MB"), rows)

    @cached_property
    def files(self) -> BundleFiles:
        """What opens the files that the manifest lists."""
        return BundleFiles(self.path, self.manifest.files, self.verification)

    def file(self, relative: str) -> Path:
        """The path of a file of the bundle."""
        return self.path / relative

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Check files (all by default) against the manifest, hashing each; :class:`CorruptBundleError` names one.

        Graphs may name only those files of weights that the manifest lists for them.
        """
        self._check(self.manifest.files if files is None else files, replace(self.files, verify="always", _hashed={}))

    def check(self, files: Iterable[str] | None = None) -> None:
        """:meth:`verify` as :attr:`verification` says: files that are known not to have changed are not hashed again."""
        self._check(self.manifest.files if files is None else files, self.files)

    def look(self, files: Iterable[str]) -> None:
        """Check that files are there, regular and of their size; what they hold is checked when they are opened to be used."""
        for name in files:
            self.files.look(name)

    def _check(self, names: Iterable[str], files: BundleFiles) -> None:
        graphs = {graph: variant for variant in self.manifest.variants.values() for graph in variant.graphs()}
        others = {file for entry in self.manifest.adapters.values() for file in entry.subgraphs()}
        others |= {embedding.graph for embedding in self.manifest.embeddings}
        for name in names:
            if name in graphs or name in others:
                check_graph(files, name, graphs[name].data if name in graphs else ())
            else:
                files.open(name).close()
        files.known.save()

    def open(self, name: str) -> VerifiedFile:
        """A file, verified, to be read or handed to a library while it is held open."""
        return self.files.open(name)

    def read(self, name: str) -> bytes:
        """The verified bytes of a file."""
        return self.files.read(name)

    def copy(self, name: str, target: Path) -> None:
        """Copy a file, verified, to ``target``, whose folder is made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.open(name) as file, target.open("wb") as copy:
            file.copy_to(copy)

    def read_text(self, name: str) -> str:
        """The verified text of a file; :class:`BundleError` where it is not UTF-8."""
        try:
            return self.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{self.file(name)} is not UTF-8: {error}") from error

    def read_json(self, name: str) -> dict[str, Any]:
        """The verified object in a JSON file; :class:`BundleError` where it holds none."""
        where = str(self.file(name))
        # Python's own writer made it: some models' configurations hold Infinity.
        found = parse_json(
            self.read_text(name), where, error=BundleError, advice="export the bundle again", finite=False
        )
        if not isinstance(found, dict):
            raise BundleError(f"{where} holds {kind(found)} where an object is expected; export the bundle again")
        return found

    def open_graph(self, graph: str) -> AbstractContextManager[OpenGraph]:
        """A graph and its weights, verified, to make a session of inside the block: see :func:`.graphs.open_graph`."""
        allowed = [variant.data for variant in self.manifest.variants.values() if graph in variant.graphs()]
        return open_graph(self.files, graph, allowed[0] if allowed else ())

    def variant(self, name: str | None = None) -> tuple[str, Variant]:
        """A variant by name; by default ``fp32``, else the first. Raises :class:`BundleError` naming those there are."""
        variants = self.manifest.variants
        name = name or ("fp32" if "fp32" in variants else next(iter(variants)))
        if name not in variants:
            raise BundleError(
                f"{self.path} has no variant {name!r}; it has: {', '.join(variants)}{did_you_mean(name, variants)}"
            )
        return name, variants[name]

    def on(self, variant: str) -> Bundle:
        """The bundle as it runs a variant: of adapters that were refitted to it, those files count."""
        if not any(entry.refits for entry in self.manifest.adapters.values()):
            return self
        return replace(self, manifest=self.manifest.on(variant))

    def variant_files(self, name: str, slots: Slots = "overridable") -> tuple[str, ...]:
        """The graphs of a variant and their weights."""
        return variant_files(self.manifest, name, slots)

    def text_of(self, adapter: str | None) -> OwnText:
        """The text files that take the place of the bundle's for an adapter; none for the base."""
        return NO_TEXT if adapter is None else OwnText.of(self.adapter(adapter), self.manifest.files)

    def embedding_of(self, adapter: str | None) -> OwnEmbedding | None:
        """How texts are embedded with an adapter: as it says, else as the base does; ``None`` for the mean over the tokens."""
        own = None if adapter is None else self.adapter(adapter).embedding
        says = own or self.manifest.embedding
        return None if says is None else OwnEmbedding(says, self.manifest.files[says.graph].sha256)

    def loaded_files(self, name: str, slots: Slots = "overridable") -> tuple[str, ...]:
        """Every file that running a variant reads: graphs, weights, tokenizer, configuration, template, adapters."""
        return loaded_files(self.manifest, name, slots)

    def adapter(self, name: str) -> AdapterEntry:
        """An adapter by name; :class:`UnknownAdapterError` lists those there are."""
        try:
            return self.manifest.adapters[name]
        except KeyError:
            known, close = ", ".join(self.manifest.adapters) or "none", did_you_mean(name, self.manifest.adapters)
            raise UnknownAdapterError(f"{self.path} has no adapter {name!r}; it has: {known}{close}") from None

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
        full = path if path.name and ".." not in path.parts else real_path(path)
        full.is_dir()
    except UnicodeEncodeError as error:
        raise BundleError(f"no bundle at {str(path)[:200]!r}: it is not valid Unicode") from error
    except OSError as error:
        raise BundleError(f"no bundle at {str(path)[:200]}: {error.strerror or error}") from error
    return full


@rereading
def read_bundle(path: str | Path, *, verify: Verify = "changed") -> Bundle:
    """Read the manifest of a bundle folder; files are checked when they are used, or by :meth:`Bundle.verify`.

    Args:
        path: The folder.
        verify: When a file that is used is hashed. ``"always"``: each time. ``"changed"``: unless this user's cache holds the
            hash of a file with the same device, inode, size and times (:mod:`.known_files`); a disk that loses bits without
            a write goes unseen. ``"never"``: not at all; sizes, links and kinds of files are checked all the same.

    Raises:
        BundleError: There is no bundle.
        ManifestError: Its manifest is not valid.
        InputError: ``verify`` is no mode.
    """
    verification = check_mode(verify)
    path = require_bundle(path)
    manifest = path / MANIFEST_NAME
    try:
        text = _read_manifest(path).decode("utf-8")
    except (OSError, UnicodeDecodeError, CorruptBundleError) as error:
        raise ManifestError(f"cannot read {manifest}: {error}") from error
    bundle = Bundle(path=path, manifest=parse_manifest(text, str(manifest)), verification=verification)
    check_adapters(bundle)
    return bundle


def require_bundle(path: str | Path) -> Path:
    """The path of a folder that holds a manifest, whatever the manifest says; see :func:`bundle_path`.

    Raises:
        BundleError: There is no such folder, or it holds no manifest.
    """
    path = bundle_path(path)
    recover(path)
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}: the folder does not exist")
    if not (path / MANIFEST_NAME).exists():
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST_NAME}. Make one with `edgepeft export`.")
    return path


def _read_manifest(path: Path) -> bytes:
    with os.fdopen(open_inside(path, MANIFEST_NAME), "rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise CorruptBundleError(f"it has more than {MAX_MANIFEST_BYTES} bytes")
    return content


def check_adapters(bundle: Bundle) -> None:
    """Refuse adapters whose contract is not with this base: identity, slots, tensor names and shapes."""
    manifest = bundle.manifest
    shapes = {**manifest.slots.tensors(), **manifest.prefix_tensors()}
    slots_hash = manifest.slots.hash  # once: it is computed, and a bundle may hold many adapters
    for name, entry in manifest.adapters.items():
        for what, found, expected in (
            ("base identity", entry.base_identity, manifest.base.identity),
            ("slot schema", entry.slots_hash, slots_hash),
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
