"""Commands that people expect: rename, diff, cache, doctor, how much is said, and what was meant."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cache import cache_entries
from edgepeft.spelling import did_you_mean

pytestmark = pytest.mark.e2e


def good(result: Any) -> Any:
    assert result.exit_code == 0, result.output + result.stderr
    return result


def test_rename(cli: Any, bundle: Path) -> None:
    before = runtime.open(bundle).adapter("reviews").predict("a good film")
    order = list(read_bundle(bundle).manifest.adapters)
    shown = json.loads(good(cli("rename", bundle, "reviews", "product", "--json")).stdout)
    assert shown["adapter"] == "product"
    opened = read_bundle(bundle)
    opened.verify()
    assert list(opened.manifest.adapters) == ["product" if name == "reviews" else name for name in order]
    assert opened.adapter("product").onnx_adapter == "adapters/product.onnx_adapter"
    assert not list(bundle.rglob("reviews*"))
    assert runtime.open(bundle).adapter("product").predict("a good film") == before


def test_rename_moves_all_files(cli: Any, generating: Path, tmp_path: Path) -> None:
    """Text files of its own and the embedding's graph go along, and a name that begins alike is left alone."""
    from edgepeft.pipeline._rename import _renamed

    folder = Path(shutil.copytree(generating, tmp_path / "lm"))
    old = next(iter(read_bundle(folder).manifest.adapters))
    good(cli("rename", folder, old, "other"))
    read_bundle(folder).verify()
    assert _renamed("adapters/a/tokenizer.json", "a", "b") == "adapters/b/tokenizer.json"
    assert _renamed("embedding/adapters/a.onnx", "a", "b") == "embedding/adapters/b.onnx"
    assert _renamed("adapters/ab.onnx", "a", "b") == "adapters/ab.onnx"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("reviws", "x", "did you mean 'reviews'?"),
        ("reviews", "movies", "already has an adapter 'movies'"),
        ("reviews", "MOVIES", "choose another name"),
        ("reviews", "../x", "the new name"),
    ],
)
def test_rename_refuses(cli: Any, bundle: Path, old: str, new: str, says: str) -> None:
    manifest = (bundle / "edgepeft.json").read_bytes()
    done = cli("rename", bundle, old, new)
    assert done.exit_code == 2
    assert says in done.stderr
    assert (bundle / "edgepeft.json").read_bytes() == manifest


def test_diff(cli: Any, exported: Path, bundle: Path) -> None:
    assert json.loads(good(cli("diff", exported, bundle, "--json")).stdout)["same"] is True
    good(cli("quantize", bundle, "--variant", "int8"))
    good(cli("remove", bundle, "--adapter", "movies"))
    good(cli("relabel", bundle, "--labels", "reviews=no,yes"))
    done = cli("diff", exported, bundle, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    seen = {(each["kind"], each["name"], each["what"]) for each in found["differences"]}
    assert seen == {
        ("variant", "int8", "added"),
        ("adapter", "movies", "removed"),
        ("adapter", "reviews", "labels"),
        ("file", "config.json", "content"),  # it says which variants there are
    }
    text = cli("diff", exported, bundle)
    assert text.exit_code == 1
    assert "4 differences" in text.stdout


def test_diff_sees_other_numbers(cli: Any, exported: Path, bundle: Path, adapters: dict[str, Path]) -> None:
    """The same name, method, rank and labels over other weights."""
    good(cli("add", bundle, f"--adapter=movies={adapters['reviews']}", "--replace"))
    found = json.loads(cli("diff", exported, bundle, "--json").stdout)["differences"]
    assert ("movies", "content") in {(each["name"], each["what"]) for each in found}


def test_cache(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    assert json.loads(good(cli("cache", "list", "--json")).stdout)["entries"] == []
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x" * 10)
    for name, size, days in (("assets/old", 1000, 40), ("assets/new", 2000, 0), ("runners/cpp", 30, 0)):
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * size)
        then = time.time() - days * 86_400
        for path in (folder / "file", folder):
            os.utime(path, (then, then))
    (tmp_path / "cache" / "assets" / "link").symlink_to(outside)
    sizes = {entry.name: entry.bytes for entry in cache_entries()}
    assert {name: sizes[name] for name in ("assets/old", "assets/new", "runners/cpp")} == {
        "assets/old": 1000,
        "assets/new": 2000,
        "runners/cpp": 30,
    }
    assert "2" in good(cli("cache", "list")).stdout
    assert cli("cache", "prune").exit_code == 2
    done = cli("cache", "prune", "asets/old")
    assert (done.exit_code, "did you mean 'assets/old'?" in done.stderr) == (2, True)
    dry = json.loads(good(cli("cache", "prune", "--older-than", 30, "--dry-run", "--json")).stdout)
    assert (dry["removed"], dry["bytes"]) == (["assets/old"], 1000)
    assert (tmp_path / "cache/assets/old/file").exists()
    good(cli("cache", "prune", "--older-than", 30))
    assert not (tmp_path / "cache/assets/old").exists()
    good(cli("cache", "prune", "--all"))
    assert cache_entries() == ()
    assert (outside / "kept").exists()


def test_doctor(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@mirror.example")
    found = json.loads(good(cli("doctor", "--json")).stdout)
    import onnxruntime

    assert found["packages"]["onnxruntime"] == onnxruntime.__version__
    assert found["extras"]["tools"] == []
    assert {each["name"]: each["ready"] for each in found["executors"]}["local"] is True
    text = good(cli("doctor")).stdout
    assert "secret" not in text
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert "local    this machine: ready" in text


def test_doctor_knows_every_extra(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepeft import doctor

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert doctor._EXTRAS.keys() == project["optional-dependencies"].keys() - {"all", "dev", "docs"}
    for extra in ("qnn", "kernels"):
        assert (
            f"pip install 'edgepeft[{extra}]'" in good(cli("doctor")).stdout or not doctor.environment().extras[extra]
        )
    monkeypatch.setattr(doctor, "installed_kernels", lambda: f"{Path.home()}/kernels has another version")
    assert doctor.environment().kernels == "~/kernels has another version"


def test_doctor_names_what_is_too_old() -> None:
    from edgepeft.doctor import _problems

    assert any("onnxruntime 1.2 is older than" in each for each in _problems({"onnxruntime": "1.2"}))
    assert _problems({"onnxruntime": "99.0", "ml_dtypes": "0.6.0"}) == []


def test_how_much_is_said(cli: Any, bundle: Path, tmp_path: Path) -> None:
    """-q leaves progress out, before and behind the command; the log file has it all the same; loggers end as they were."""
    before = logging.getLogger().level, len(logging.getLogger().handlers)
    assert "quantizing" in good(cli("quantize", bundle, "--variant", "int8")).stderr
    assert "quantizing" not in good(cli("-q", "quantize", bundle, "--variant", "int8", "--replace")).stderr
    log = tmp_path / "log"
    quiet = good(cli("quantize", bundle, "--variant", "int8", "--replace", "-q", "--log-file", log))
    assert "quantizing" not in quiet.stderr
    assert "INFO edgepeft.steps: quantizing to int8" in log.read_text()
    failed = cli("run", bundle, "x", "--adapter", "nobody", "-q", "--log-file", log)
    assert failed.exit_code == 2
    assert "Error: " in failed.stderr
    assert "UnknownAdapterError" in log.read_text()
    assert (logging.getLogger().level, len(logging.getLogger().handlers)) == before


def test_verbose_shows_what_libraries_log(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgepeft.targets

    def chatty() -> list[Any]:
        logging.getLogger("another.library").info("fetched %s", "it")
        return []

    monkeypatch.setattr(edgepeft.targets, "list_targets", chatty)
    assert "another.library: fetched it" not in good(cli("targets", "list")).stderr
    assert good(cli("targets", "list", "-v")).stderr.count("another.library: fetched it") == 1


def test_a_log_file_that_cannot_be_written(cli: Any, tmp_path: Path) -> None:
    done = cli("targets", "list", "--log-file", tmp_path / "no" / "log")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["run", "BUNDLE", "x", "--adapter", "reveiws"], "reviews"),
        (["run", "BUNDLE", "x", "--variant", "pf32"], "fp32"),
        (["remove", "BUNDLE", "--adapter", "Movies"], "movies"),
        (["relabel", "BUNDLE", "--labels", "reviewz=a,b"], "reviews"),
        (["blend", "BUNDLE", "reviews=1", "moveis=1", "--out", "x"], "movies"),
    ],
)
def test_what_was_meant(cli: Any, bundle: Path, arguments: list[str], meant: str) -> None:
    done = cli(*[bundle if each == "BUNDLE" else each for each in arguments])
    assert done.exit_code == 2
    assert f"did you mean {meant!r}?" in done.stderr


def test_nothing_close_is_not_guessed() -> None:
    assert did_you_mean("zebra", ["reviews", "movies"]) == ""
