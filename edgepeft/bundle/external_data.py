"""Which other files an ONNX graph names, read from its bytes without ONNX: devices have no protobuf library.

Only field numbers of ``onnx.proto`` (ONNX 1.23) on the way to ``TensorProto.external_data`` are known here; the rest is
skipped by its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ..errors import CorruptBundleError
from .protobuf import Buffer, fields

#: Message → field number → the message it holds, where one below it can name a file.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
#: Messages inside messages, protobuf's own limit.
_DEPTH = 100
_KEY, _VALUE = 1, 2
_LOCATION = b"location"


def external_files(graph: str, content: Buffer) -> tuple[str, ...]:
    """The files that hold weights of a graph, in the order it names them, as paths from the bundle's folder.

    Args:
        graph: The graph's own path from the bundle's folder; locations are relative to its folder.
        content: The bytes of the graph.

    Raises:
        CorruptBundleError: The bytes are no protobuf message, or a location leaves the bundle's folder.
    """
    found: dict[str, None] = {}
    try:
        for location in _locations(content, 0, len(content), "Model", 0):
            found[_inside(graph, location)] = None
    except (IndexError, RecursionError) as error:
        raise CorruptBundleError(f"{graph} is not an ONNX graph: {error}; export the bundle again") from error
    return tuple(found)


def _inside(graph: str, location: bytes) -> str:
    try:
        text = location.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptBundleError(f"{graph} names a weights file that is no text: {location!r}") from error
    pure = PurePosixPath(text)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in text or ":" in text or "\0" in text:
        raise CorruptBundleError(
            f"{graph} names the weights file {text!r}, which is not a plain path below its own folder; export the bundle again"
        )
    return (PurePosixPath(graph).parent / pure).as_posix()


def _locations(content: Buffer, start: int, end: int, message: str, depth: int) -> Iterator[bytes]:
    """The values of every ``location`` entry below a message."""
    if depth > _DEPTH:
        raise IndexError(f"its messages are nested deeper than {_DEPTH}")
    inner = _MESSAGES[message]
    for field, first, last in fields(content, start, end):
        kind = inner.get(field)
        if kind is None:
            continue
        if kind == "Entry":
            location = _entry(content, first, last)
            if location is not None:
                yield location
        # Most nodes hold no tensor at all: looking for the word is much quicker than reading their fields.
        elif kind != "Node" or _LOCATION in content[first:last]:
            yield from _locations(content, first, last, kind, depth + 1)


def _entry(content: Buffer, start: int, end: int) -> bytes | None:
    """The value of a ``StringStringEntryProto`` whose key is ``location``; of repeated fields the last counts."""
    held = {field: bytes(content[first:last]) for field, first, last in fields(content, start, end)}
    return held.get(_VALUE, b"") if held.get(_KEY) == _LOCATION else None
