"""Calls from odd places: inside the bundle, in another locale, into a closed or full output, without home or scratch room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import call, small_files, snapshot

pytestmark = pytest.mark.e2e

Done = subprocess.CompletedProcess[str]


def edgepeft(*arguments: object, **options: object) -> Done:
    command = [sys.executable, "-m", "edgepeft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("way", [".", "./", "..", "../bundle", "../bundle/", "link", "link/"])
def test_from_inside_and_through_links(
    way: str, bundle: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "..":
        monkeypatch.chdir(bundle / "adapters")
    elif way.startswith("link"):
        (bundle.parent / "link").symlink_to(bundle)
        monkeypatch.chdir(bundle.parent)
    else:
        monkeypatch.chdir(bundle)
    there = Path.cwd()
    for arguments in (
        ("run", way, "a good film", "--adapter", "reviews"),
        ("inspect", way),
        ("validate", way),
        ("add", way, f"--adapter=register={adapters['register']}"),
    ):
        done = call(*arguments)
        assert done.exit_code == 0, done.output
    monkeypatch.chdir(there)  # it was replaced by its new self
    assert "register" in call("inspect", way, "--json").stdout
    assert json.loads((bundle / "edgepeft.json").read_text())["adapters"].keys() == {"reviews", "movies", "register"}
    assert not [path for path in bundle.parent.iterdir() if path.name.startswith(".")]


def test_a_folder_that_is_gone(bundle: Path, tmp_path: Path) -> None:
    code = "import os, sys, shutil; from edgepeft.cli import main; shutil.rmtree(os.getcwd()); main(sys.argv[1:])"
    gone = tmp_path / "gone"
    gone.mkdir()
    # -P: like the installed script, which does not import from the current folder (Python 3.13.0 cannot where it is gone).
    command = [sys.executable, "-P", "-c", code, "run", ".", "x"]
    done = subprocess.run(command, cwd=gone, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Change into it again" in done.stderr


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_without_unicode(bundle: Path, tmp_path: Path) -> None:
    environment = {**os.environ, **ASCII}
    done = edgepeft("run", bundle, "été", "--adapter", "reviews", env=environment)
    assert done.returncode == 2
    assert "is not a text: it holds bytes that are none in this terminal's encoding (ascii)" in done.stderr
    (tmp_path / "texts.txt").write_text("un été\n", encoding="utf-8")
    done = edgepeft("run", bundle, "--file", tmp_path / "texts.txt", "--adapter", "reviews", env=environment)
    assert (done.returncode, done.stdout.rpartition("\t")[2]) == (0, "un été\n")  # click writes UTF-8 there
    assert edgepeft("inspect", bundle, env=environment).returncode == 0


def test_outputs_that_take_nothing(bundle: Path) -> None:
    command = [sys.executable, "-m", "edgepeft", "run", str(bundle), "x", "--adapter", "reviews"]
    with Path("/dev/full").open("w") as full:
        for more in ([], ["--json"]):
            done = subprocess.run([*command, *more], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert (done.returncode, done.stderr) == (2, "Error: No space left on device\n")
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (0, "")


def test_no_home(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"HOME", "EDGEPEFT_CACHE"}}
    assert edgepeft("run", bundle, "x", "--adapter", "reviews", env=environment).returncode == 0
    from edgepeft.cache import cache_dir
    from edgepeft.errors import InputError

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDGEPEFT_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(InputError, match="set EDGEPEFT_CACHE"):
        cache_dir()


@pytest.mark.parametrize("command", ["add", "quantize"])
def test_files_that_cannot_be_written(command: str, bundle: Path, adapters: dict[str, Path]) -> None:
    """A limit on the size of files stands for a disk that is full."""
    before = snapshot(bundle)
    more = [f"--adapter=register={adapters['register']}"] if command == "add" else ["--variant", "int8"]
    done = edgepeft(command, bundle, *more, **small_files(20_000))
    assert done.returncode == 2, done.stderr
    assert "was left as it was" in done.stderr
    assert snapshot(bundle) == before


CSV: list[tuple[str, bytes, str]] = [
    ("a.csv", b'text,label\n"' + b"x" * 200_000 + b'",good\n', "line 2: a field of more than 131,072 characters"),
    ("a.csv", b"x" * 200_000 + b"\n", "line 1: a field of more than 131,072 characters"),
    ("a.csv", b"text,text\na,b\n", "names the column 'text' twice"),
    ("a.csv", b"text\n\xff\xfe\n", "line 2: byte 0xff is not valid UTF-8"),
    ("a.jsonl", b'{"text": ' + b"[" * 5000 + b"\n", "line 1: "),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
    ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", "5000 digits"),
    ("a.jsonl", b'{"text": "a", "text": "b"}\n', "stands twice"),
]


@pytest.mark.parametrize(("name", "content", "says"), CSV, ids=[says for *_, says in CSV])
def test_data_files(name: str, content: bytes, says: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    done = call("run", bundle, "--file", tmp_path / name, "--adapter", "reviews")
    assert done.exit_code == 2
    assert says in done.stderr
    assert name in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a = " + "[" * 5000, "cannot be read|not valid TOML"),
        ("a = " + "9" * 5000, "digits"),
        ("a = 0x" + "f" * 5000, "digits|limit"),
        ("[runtime]\nthreads = 100000", "runtime.threads"),
        ("[runtime]\nthreads = inf", "runtime.threads"),
        ("#" * 2**21, "more than 1,048,576 bytes"),
    ],
)
def test_target_files(content: str, says: str, bundle: Path, tmp_path: Path) -> None:
    import re

    (tmp_path / "t.toml").write_text('extends = "linux-x64-cpu"\nname = "t"\nsummary = "s"\n' + content)
    done = call("targets", "show", tmp_path / "t.toml")
    assert done.exit_code == 2
    assert re.search(rf"t\.toml.*({says})", done.stderr, re.DOTALL)


def test_a_bug_is_still_one(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we did not foresee must not look like the user's mistake."""
    from click.testing import CliRunner

    from edgepeft import runtime
    from edgepeft.cli import main

    def broken(*given: object, **named: object) -> None:
        raise KeyError("x")

    opening: Callable[..., object] = broken
    monkeypatch.setattr(runtime, "open", opening)
    assert CliRunner().invoke(main, ["run", str(bundle), "x"]).exit_code == 70
