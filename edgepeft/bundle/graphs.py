"""A graph of a bundle, ready for a session: its own bytes and its weights verified, and nothing else reachable from it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ..errors import BundleError, CorruptBundleError
from .external_data import external_files
from .opening import Identity, open_folder
from .verified import BundleFiles, VerifiedFile, descriptor_path

#: A graph that holds its weights itself is not copied into memory above this size.
_BYTES_LIMIT = 16 << 20
#: protobuf's own limit.
_GRAPH_LIMIT = 1 << 31


@dataclass(frozen=True)
class OpenGraph:
    """What ONNX Runtime makes a session of: ``InferenceSession(graph.model, options)`` with ``settings`` in its options.

    ``model`` are the verified bytes, or for a large graph with its weights inside the path of the open file.
    """

    model: bytes | str
    settings: dict[str, str] = field(default_factory=dict)
    #: The files of weights that the graph names.
    weights: tuple[str, ...] = ()


@contextmanager
def open_graph(files: BundleFiles, graph: str, allowed: tuple[str, ...]) -> Iterator[OpenGraph]:
    """A graph to make a session of, inside the block.

    The graph is hashed first; its weights are hashed in a second thread while the block runs (ONNX Runtime only maps them),
    and what is wrong with them is raised at the block's end. ONNX Runtime opens the weights by name, in the folder that is
    held open here; the end of the block checks that these are the files that were hashed, as they were.

    Args:
        files: The bundle's files.
        graph: The graph's path from the bundle's folder.
        allowed: The files that may hold its weights.

    Raises:
        CorruptBundleError: A file is not what the manifest says, or the graph names a file that is not ``allowed``.
    """
    with ExitStack() as stack:
        file = stack.enter_context(files.open_unverified(graph))
        content = _read_verified(files, file)
        names = named_files(file, content, allowed)
        # ONNX Runtime knows its own format by the file's name, which neither bytes nor a descriptor have.
        settings = {"session.load_model_format": "ORT"} if graph.endswith(".ort") else {}
        if content is None and not names:
            yield OpenGraph(file.load_path, settings)
            return
        folder = open_folder(files.root, graph)
        if folder is not None:
            stack.callback(os.close, folder)
        if names:
            held = None if folder is None else descriptor_path(folder)
            settings["session.model_external_initializers_file_folder_path"] = held or str(file.path.parent)
        with _hashing(files, stack, names) as weights:
            yield OpenGraph(file.read() if content is None else content, settings, names)
        for each in weights:
            _check_in_place(each, graph, folder)


def check_graph(files: BundleFiles, graph: str, allowed: tuple[str, ...]) -> None:
    """:func:`open_graph` without its weights: the graph is what the manifest says, and names no file that is not ``allowed``."""
    with files.open_unverified(graph) as file:
        named_files(file, _read_verified(files, file), allowed)


def _read_verified(files: BundleFiles, file: VerifiedFile) -> bytes | None:
    """The bytes of a graph that is small enough to copy; a larger one is hashed where it is."""
    if file.entry.bytes >= _GRAPH_LIMIT:
        raise BundleError(f"{file.path} has {file.entry.bytes} bytes; an ONNX graph has less than {_GRAPH_LIMIT}")
    content = file.read() if file.entry.bytes <= _BYTES_LIMIT else None
    if files.to_be_hashed(file):
        files.check_hash(file, content)
    files.note_opened(file)
    return content


def named_files(file: VerifiedFile, content: bytes | None, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The files of weights that an open graph names; :class:`CorruptBundleError` for one that is not ``allowed``."""
    if file.name.endswith(".ort"):  # holds its weights itself
        return ()
    if content is not None:
        names = external_files(file.name, content)
    else:
        with mmap.mmap(file.descriptor, file.entry.bytes, access=mmap.ACCESS_READ) as mapped:
            names = external_files(file.name, mapped)
    for name in names:
        if name not in allowed:
            raise CorruptBundleError(
                f"{file.path} names the weights file {name}, which the manifest does not list for it (listed: "
                f"{', '.join(allowed) or 'none'}); export the bundle again"
            )
    return names


@contextmanager
def _hashing(files: BundleFiles, stack: ExitStack, names: tuple[str, ...]) -> Iterator[list[VerifiedFile]]:
    """Files that are hashed, where that is needed, while the block runs; its end waits, whatever ended it."""
    opened = [stack.enter_context(files.open_unverified(name)) for name in names]
    with ThreadPoolExecutor(1, thread_name_prefix="edgepeft-hash") as pool:
        waiting: list[Future[None]] = [
            pool.submit(files.check_hash, each) for each in opened if files.to_be_hashed(each)
        ]
        try:
            yield opened
        finally:
            # A damaged file is the better reason where ONNX Runtime failed on it first.
            for done in waiting:
                done.result()
    for each in opened:
        files.note_opened(each)
    files.known.save()


def _check_in_place(weights: VerifiedFile, graph: str, folder: int | None) -> None:
    """Check that the name that ONNX Runtime opened still leads to the file that was hashed."""
    inside = PurePosixPath(weights.name).relative_to(PurePosixPath(graph).parent)
    try:
        status = weights.path.stat() if folder is None else os.stat(inside, dir_fd=folder)
    except OSError as error:
        raise CorruptBundleError(f"{weights.path} was removed while it was opened; open the bundle again") from error
    if Identity.of(status) != Identity.of(os.fstat(weights.descriptor)):
        raise CorruptBundleError(f"{weights.path} was replaced while it was opened; open the bundle again")
