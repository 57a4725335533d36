"""Files that are what the manifest says: when they are hashed, what is remembered, and what a change does."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepeft.bundle import FileEntry, known_files, verified
from edgepeft.bundle.known_files import KnownFiles
from edgepeft.bundle.opening import Identity
from edgepeft.bundle.verified import BundleFiles, VerifiedFile, Verify, check_mode
from edgepeft.errors import BundleError, CorruptBundleError, InputError

CONTENT = b"weights" * 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "a").write_bytes(CONTENT)
    return tmp_path / "bundle"


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed, in order; every file counts as written long ago."""
    found: list[str] = []
    real = BundleFiles.check_hash

    def check_hash(self: BundleFiles, file: VerifiedFile, content: bytes | None = None) -> None:
        found.append(file.name)
        real(self, file, content)

    monkeypatch.setattr(BundleFiles, "check_hash", check_hash)
    monkeypatch.setattr(known_files, "TICK_NS", -1)
    return found


def entry(content: bytes = CONTENT) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def files(folder: Path, verify: Verify = "changed", record: Path | None = None) -> BundleFiles:
    """As one process opens a bundle."""
    return BundleFiles(folder, {"a": entry()}, verify, KnownFiles(record or folder.parent / "record.json"))


def test_bytes(folder: Path) -> None:
    assert files(folder).read("a") == CONTENT
    with files(folder).open("a") as file:
        assert file.read() == CONTENT
        assert file.sha256() == entry().sha256
        assert Path(file.load_path).read_bytes() == CONTENT


@pytest.mark.parametrize("verify", ["always", "changed", "never"])
def test_how_often_a_file_is_hashed(folder: Path, verify: Verify, hashes: list[str]) -> None:
    """Two processes that each open it twice; within one, nothing that did not change is hashed again."""
    for _ in range(2):
        mine = files(folder, verify)
        for _ in range(2):
            assert mine.read("a") == CONTENT
    assert len(hashes) == {"always": 2, "changed": 1, "never": 0}[verify]


def test_a_file_written_just_now_is_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could be written again within the same tick of the clock."""
    record = folder.parent / "record.json"
    files(folder).read("a")
    assert not record.exists()
    monkeypatch.setattr(known_files, "TICK_NS", -1)
    files(folder).read("a")
    assert list(json.loads(record.read_text()).values()) == [entry().sha256]


@pytest.mark.parametrize("verify", ["always", "changed"])
def test_an_edit_is_seen(folder: Path, verify: Verify, hashes: list[str]) -> None:
    files(folder, verify).read("a")
    before = (folder / "a").stat()
    edit(folder / "a", CONTENT[:-1] + b"X")
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptBundleError, match="changed after the bundle was written"):
        files(folder, verify).read("a")


def edit(path: Path, content: bytes) -> None:
    """Write, once the clock of the file system has moved on."""
    first = Identity.of(path.stat())
    while Identity.of(path.stat()) == first:
        path.write_bytes(content)


def test_never_takes_what_it_finds_but_keeps_to_it(folder: Path, hashes: list[str]) -> None:
    """What is found first is not hashed; what takes its place later must be what the manifest says."""
    edit(folder / "a", CONTENT[:-1] + b"X")
    mine = files(folder, "never")
    assert mine.read("a") == CONTENT[:-1] + b"X"
    assert hashes == []
    edit(folder / "a", CONTENT[:-1] + b"Y")
    with pytest.raises(CorruptBundleError, match=r"since the bundle was opened.*Open the bundle again"):
        mine.read("a")
    edit(folder / "a", CONTENT)
    assert mine.read("a") == CONTENT


@pytest.mark.parametrize("verify", ["always", "changed", "never"])
def test_sizes_hold_whatever_the_mode(folder: Path, verify: Verify) -> None:
    mine = files(folder, verify)
    mine.read("a")
    (folder / "a").write_bytes(CONTENT[:-1])
    with pytest.raises(CorruptBundleError, match="6999 bytes, the manifest then said 7000"):
        mine.read("a")
    with pytest.raises(CorruptBundleError, match="6999 bytes, the manifest says 7000"):
        files(folder, verify).read("a")


def test_nothing_is_allocated_for_a_manifest_that_asks_for_too_much(folder: Path) -> None:
    """The file is as large as the manifest says, and empty on disk."""
    with (folder / "big").open("wb") as file:
        file.truncate(1 << 40)
    mine = BundleFiles(folder, {"big": FileEntry(sha256="0" * 64, bytes=1 << 40)})
    with pytest.raises(BundleError, match="at most 268435456 are read"):
        mine.read("big")


def test_a_file_that_the_manifest_does_not_list(folder: Path) -> None:
    with pytest.raises(BundleError, match="b is not listed in the manifest"):
        files(folder).read("b")


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_change_while_a_library_reads(folder: Path, how: str) -> None:
    """An open file is what it was when its block ends, or the block fails."""
    path = folder / "a"

    def change() -> None:
        with files(folder).open("a") as file:
            if how == "written":
                edit(path, CONTENT[:-1] + b"X")
            else:
                other.replace(path)
                assert Path(file.load_path).read_bytes() == CONTENT  # the open file itself

    other = folder / "other"
    other.write_bytes(CONTENT[:-1] + b"X")
    if how == "written":
        with pytest.raises(CorruptBundleError, match="changed while it was opened"):
            change()
    else:
        change()


def test_without_paths_of_descriptors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows: the file's own path is given, and what took its place meanwhile is seen."""
    monkeypatch.setattr(verified, "descriptor_path", lambda descriptor: None)
    with files(folder).open("a") as file:
        assert file.load_path == str(folder / "a")
    (folder / "other").write_bytes(CONTENT)
    with pytest.raises(CorruptBundleError, match="changed while it was opened"), files(folder).open("a"):
        (folder / "other").replace(folder / "a")


def test_a_mode_that_is_none() -> None:
    assert check_mode("never") == "never"
    with pytest.raises(InputError, match="always, changed, never, found 'sometimes'"):
        check_mode("sometimes")


class TestRecord:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(b"\xff\x00 not JSON"),
            lambda path: path.write_text("[1, 2]"),
            lambda path: path.write_text("[" * 100_000),
            lambda path: path.write_text('{"1:2:3:4:5": 7}'),
            lambda path: path.write_text(f'{{"x": "{"0" * (1 << 21)}"}}'),
            lambda path: (path.unlink(), path.mkdir()),
            lambda path: (path.unlink(), os.mkfifo(path)),
            lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        ],
    )
    def test_damaged(self, folder: Path, damage: Callable[[Path], object], hashes: list[str]) -> None:
        """Files are hashed again, and nothing is raised."""
        record = folder.parent / "record.json"
        files(folder).read("a")
        damage(record)
        assert files(folder).read("a") == CONTENT
        assert len(hashes) == 2

    def test_that_others_may_write(self, folder: Path, hashes: list[str]) -> None:
        """Who forges the record could have any content pass."""
        record = folder.parent / "record.json"
        files(folder).read("a")
        record.chmod(0o666)
        files(folder).read("a")
        assert len(hashes) == 2

    def test_without_a_place(self, folder: Path, hashes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """A file where the cache's folder should be, and a user without a home."""
        (folder.parent / "file").write_bytes(b"")
        assert files(folder, record=folder.parent / "file" / "record.json").read("a") == CONTENT
        monkeypatch.setattr(known_files, "cache_dir", lambda: Path("~nobody-by-this-name").expanduser())
        assert BundleFiles(folder, {"a": entry()}).read("a") == CONTENT
        assert len(hashes) == 2

    def test_bounded(self, folder: Path, hashes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """The files that were hashed last are kept."""
        monkeypatch.setattr(known_files, "_LIMIT", 3)
        record = folder.parent / "record.json"
        names = [f"f{number}" for number in range(5)]
        for name in names:
            (folder / name).write_bytes(CONTENT)
            BundleFiles(folder, {name: entry()}, known=KnownFiles(record)).read(name)
        assert len(json.loads(record.read_text())) == 3
        hashes.clear()
        for name in names[-3:]:
            BundleFiles(folder, {name: entry()}, known=KnownFiles(record)).read(name)
        assert hashes == []

    def test_many_writers(self, folder: Path, hashes: list[str]) -> None:
        """The record is whole at any time, and what each wrote last is true."""
        record = folder.parent / "record.json"
        for number in range(8):
            (folder / f"f{number}").write_bytes(CONTENT)

        def work(name: str) -> None:
            for _ in range(10):
                BundleFiles(folder, {name: entry()}, known=KnownFiles(record)).read(name)

        threads = [threading.Thread(target=work, args=(f"f{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if record.exists():
                assert set(json.loads(record.read_text()).values()) <= {entry().sha256}
        assert [path.name for path in folder.parent.iterdir() if path.name.startswith("record.json.")] == []

    def test_a_wrong_hash_is_found_out(self, folder: Path, hashes: list[str]) -> None:
        """A record with another hash than the manifest's is no proof that the file is damaged."""
        record = folder.parent / "record.json"
        files(folder).read("a")
        known = json.loads(record.read_text())
        record.write_text(json.dumps(dict.fromkeys(known, "0" * 64)))
        record.chmod(0o600)
        assert files(folder).read("a") == CONTENT
