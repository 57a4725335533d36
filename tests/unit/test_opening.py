"""Opening files of a folder that came from elsewhere: nothing outside it, nothing that is no file, nothing that blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgepeft.bundle.opening import Identity, open_inside
from edgepeft.errors import BundleError, CorruptBundleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundle" / "onnx").mkdir(parents=True)
    (tmp_path / "bundle" / "onnx" / "model.onnx").write_bytes(b"graph")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "bundle"


def content(folder: Path, name: str) -> bytes:
    descriptor = open_inside(folder, name)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_a_file(folder: Path) -> None:
    assert content(folder, "onnx/model.onnx") == b"graph"


def test_links_inside_and_a_linked_bundle(folder: Path, tmp_path: Path) -> None:
    """As a cache of content by hash lays a folder out; the bundle's own path may be a link too."""
    (folder / "blobs").mkdir()
    (folder / "blobs" / "1234").write_bytes(b"weights")
    (folder / "onnx" / "data").symlink_to("../blobs/1234")
    (folder / "same").symlink_to("onnx", target_is_directory=True)
    (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
    for root in (folder, tmp_path / "linked"):
        assert content(root, "onnx/data") == b"weights"
        assert content(root, "same/data") == b"weights"


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (lambda f: (f / "x").symlink_to("../secret"), "x", "link that leaves"),
        (lambda f: (f / "x").symlink_to(f.parent / "secret"), "x", "link that leaves"),
        (lambda f: (f / "x").symlink_to("/dev/zero"), "x", "link that leaves"),
        (lambda f: (f / "up").symlink_to(".."), "up/secret", "link that leaves"),
        (lambda f: (f / "onnx" / "up").symlink_to("../../secret"), "onnx/up", "link that leaves"),
        (lambda f: (f / "x").symlink_to("x"), "x", "link to a link"),
        (lambda f: (f / "x").symlink_to("nowhere"), "x", "missing"),
        (lambda f: None, "x", "missing"),
        (lambda f: None, "onnx/model.onnx/x", "is a file where"),
        (lambda f: os.mkfifo(f / "x"), "x", "is a pipe"),
        (lambda f: (f / "x").mkdir(), "x", "is a folder where"),
        (lambda f: os.mkfifo(f / "p"), "p/x", "is a pipe where the manifest names a folder"),
    ],
)  # fmt: skip
def test_refused(folder: Path, make: object, name: str, says: str) -> None:
    make(folder)  # type: ignore[operator]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CorruptBundleError, match=says):
        open_inside(folder, name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "a descriptor was left open"


def test_a_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.chdir(folder)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x")
        with pytest.raises(CorruptBundleError, match="special file"):
            open_inside(folder, "x")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be opened as a bundle folder"):
        open_inside(tmp_path / "none", "x")


def test_an_identity_changes_with_every_write(folder: Path) -> None:
    """The time of modification can be put back, the kernel's own cannot."""
    path = folder / "onnx" / "model.onnx"
    before = path.stat()
    first = Identity.of(before)
    while Identity.of(path.stat()) == first:  # until the clock of the file system has moved on
        path.write_bytes(b"grapX")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_size == before.st_size
