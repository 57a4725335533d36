"""Graphs as ONNX Runtime has optimized and packed them for this processor, kept in the user's cache and mapped when opened.

Opening a quantized model otherwise copies most of its weights into the layout that this processor's kernels want: into memory of
the process's own, each time, in each process. A warm copy holds them in that layout, so they are mapped from its file and shared.
It is made from verified files, and is itself verified as a bundle's files are (:mod:`edgepeft.bundle.verified`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..bundle import Bundle, FileEntry, hash_file, locked
from ..bundle.graphs import OpenGraph, open_graph
from ..bundle.known_files import TICK_NS
from ..bundle.loads import variant_graphs
from ..bundle.transaction import left_as_it_was
from ..bundle.verified import BundleFiles
from ..cache import cache_dir
from ..errors import BundleError, InputError

#: The folder of the cache, and the two files of an entry with the record of them.
FOLDER, _GRAPH, _WEIGHTS, _RECORD = "warm", "model.onnx", "model.onnx_data", "entry.json"
#: Of an entry's layout: another number makes all of them anew.
_LAYOUT = 1
#: Bytes that all entries may take; of more the ones used longest ago are removed.
LIMIT = 20_000_000_000
#: Bytes of a copy from which on hashing it holds up whoever opens it.
SLOW = 100_000_000


@dataclass(frozen=True)
class Warmed:
    """A warm copy of a variant's graphs: where each lies, their bytes, and how many were made just now."""

    folders: tuple[Path, ...]
    bytes: int
    made: int


def processor() -> str:
    """What tells this processor's instructions, as far as kernels choose by them."""
    found = [platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        found += next(
            (sorted(line.split(":")[1].split()) for line in lines if line.startswith(("flags", "Features"))), []
        )
    except (OSError, IndexError):
        found.append(platform.processor())
    return " ".join(found)


def _settings() -> dict[str, str]:
    """How a session is made whose optimized graph and packed weights are saved."""
    return {
        "session.optimized_model_external_initializers_file_name": _WEIGHTS,
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }


def key_of(bundle: Bundle, file: str) -> str:
    """The name of a graph's warm copy: what it is made of, by what, and for which processor, hashed."""
    import onnxruntime

    # A graph that pools and normalizes embeddings belongs to no variant, and has no weights beside it.
    data = next((each.data for each in bundle.manifest.variants.values() if file in each.graphs()), ())
    parts = {
        "layout": _LAYOUT,
        "files": {name: bundle.manifest.files[name].sha256 for name in sorted({file, *data})},
        "onnxruntime": onnxruntime.__version__,
        "processor": processor(),
        "settings": _settings(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]


def _place(bundle: Bundle, file: str) -> Path:
    return cache_dir() / FOLDER / key_of(bundle, file)


def warm(bundle: Bundle, variant: str | None = None) -> Warmed:
    """Make warm copies of a variant's graphs, where there are none yet.

    Two processes that do so at once make one copy: the second waits for the first. What was removed from the cache, or is damaged,
    is made again.

    Args:
        bundle: The bundle; its files are verified as they are read.
        variant: A precision of the base, as :func:`edgepeft.runtime.open` chooses it by default.

    Returns:
        The copies.

    Raises:
        BundleError: ONNX Runtime cannot open a graph, a graph is in its own format, or the cache has no room.
        CorruptBundleError: A file of the bundle is not what its manifest says.

    Example:
        >>> warm(read_bundle("bundle"), "q4").made
        1
    """
    name, _ = bundle.variant(variant)
    folders, made = [], 0
    for file in variant_graphs(bundle.manifest, name):
        if file.endswith(".ort"):
            raise BundleError(
                f"{bundle.file(file)} is in ORT format, which is optimized already and packed when it is opened"
            )
        place = _place(bundle, file)
        with left_as_it_was(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with locked(place):
                if not _whole(place):
                    _make(bundle, file, place)
                    _remember(place)
                    made += 1
        folders.append(place)
    _evict(kept={place.name for place in folders})
    size = sum(path.stat().st_size for place in folders for path in place.iterdir())
    return Warmed(tuple(folders), size, made)


def _whole(place: Path) -> bool:
    """Whether a copy is there and its files are what its record says."""
    entries = _entries(place)
    if entries is None:
        return False
    files = BundleFiles(place, entries, "always")
    try:
        for name in entries:
            files.open(name).close()
    except BundleError:
        return False
    files.known.save()
    return True


def _remember(place: Path) -> None:
    """Hash a large copy again when its hash can be kept (a write from then on shows), so that whoever opens it first need not."""
    status = [(place / name).stat() for name in (_GRAPH, _WEIGHTS)]
    if sum(each.st_size for each in status) >= SLOW:
        written = max(max(each.st_mtime_ns, each.st_ctime_ns) for each in status)
        time.sleep(max(0.0, (written + TICK_NS - time.time_ns()) / 1e9 + 0.01))
        _whole(place)


def _entries(place: Path) -> dict[str, FileEntry] | None:
    """The files of a copy as its record lists them; ``None`` where there is no readable record."""
    try:
        said = json.loads((place / _RECORD).read_text(encoding="utf-8"))["files"]
        return {name: FileEntry.model_validate(said[name]) for name in (_GRAPH, _WEIGHTS)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(bundle: Bundle, file: str, place: Path) -> None:
    """Let ONNX Runtime write its optimized graph and packed weights, and put them in ``place`` as a whole."""
    import onnxruntime as ort

    folder = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(folder / _GRAPH)
        with bundle.open_graph(file) as graph:
            for name, value in {**graph.settings, **_settings()}.items():
                options.add_session_config_entry(name, value)
            try:
                ort.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's exception types are not public
                raise BundleError(f"ONNX Runtime cannot open {bundle.file(file)}: {error}") from error
        (folder / _WEIGHTS).touch()  # a graph of small weights holds them itself
        files = {name: hash_file(folder / name).model_dump() for name in (_GRAPH, _WEIGHTS)}
        record = {"files": files, "of": str(bundle.path), "graph": file}
        (folder / _RECORD).write_text(json.dumps(record, indent=2, allow_nan=False), encoding="utf-8")
        folder.chmod(0o755)
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _evict(kept: set[str]) -> None:
    """Remove the copies that were used longest ago while all take more than ``LIMIT``; those in ``kept`` stay."""
    root = cache_dir() / FOLDER
    found = []
    for place in root.iterdir():
        if place.is_dir() and not place.name.startswith("."):
            size = sum(path.stat().st_size for path in place.iterdir())
            record = place / _RECORD
            found.append((record.stat().st_mtime if record.is_file() else 0.0, size, place))
    total = sum(size for _, size, _ in found)
    for _, size, place in sorted(found):
        if total <= LIMIT:
            return
        if place.name not in kept:
            shutil.rmtree(place, ignore_errors=True)  # who has it open keeps its mapped files
            total -= size


def _found(bundle: Bundle, file: str) -> tuple[Path, dict[str, FileEntry] | None]:
    """Where a graph's copy lies, and its files; ``None`` where there is none, or none can be."""
    packed = any(file in each.graphs() for each in bundle.manifest.variants.values())  # a pooling graph is not
    if not packed or file.endswith(".ort") or sys.platform == "win32":
        return Path(), None
    try:
        place = _place(bundle, file)
    except InputError:  # a user without a home, who names no cache
        return Path(), None
    return place, _entries(place)


@contextmanager
def open_warm(bundle: Bundle, file: str) -> Iterator[OpenGraph | None]:
    """A graph's warm copy to make a session of, verified as the bundle's files are; ``None`` where there is none.

    A copy that is damaged, or whose files this system cannot name while they are open, is passed over: it is a help, never needed.
    """
    place, entries = _found(bundle, file)
    if entries is None:
        yield None
        return
    files = BundleFiles(place, entries, bundle.verification)
    try:
        files.open(_GRAPH).close()
        files.open(_WEIGHTS).close()
        os.utime(place / _RECORD)  # for eviction: used just now
    except (BundleError, OSError):
        yield None
        return
    with open_graph(files, _GRAPH, (_WEIGHTS,)) as graph:
        yield graph
