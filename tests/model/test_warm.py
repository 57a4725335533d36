"""Warm copies: the same answers from packed weights, verified, made once, and never in the way."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from causal import build_causal_bundle

import edgepeft.runtime.warm as warming
from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.bundle.verified import VerifiedFile
from edgepeft.errors import BundleError, CorruptBundleError
from edgepeft.pipeline import quantize
from edgepeft.runtime.warm import FOLDER, key_of, warm

IDS = {"input_ids": np.array([[5, 9, 11, 40]]), "attention_mask": np.ones((1, 4), np.int64)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build_causal_bundle(tmp_path_factory.mktemp("warm"))
    quantize(path, "q4", method="rtn", measure=False)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(bundle: Path, adapter: str | None = "wide", **options: object) -> np.ndarray:
    with runtime.open(bundle, variant="q4", threads=1, kernels="off", **options) as model:  # type: ignore[arg-type]
        names = {value.name: value.shape for value in model.manifest.inputs}
        from edgepeft.base.parity_causal import empty_cache

        found: np.ndarray = model.adapter(adapter).forward({**IDS, **empty_cache(names, 1)})["logits"]
        return found


def opened_from(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each graph that is opened from now on is a warm copy."""
    import edgepeft.runtime.sessions as sessions

    own, seen = sessions.open_session, []

    def watched(model: object, **options: object) -> object:
        folder = dict(options["settings"] or {}).get("session.model_external_initializers_file_folder_path", "")  # type: ignore[call-overload]
        target = Path(folder).resolve() if folder else Path()
        seen.append(FOLDER in target.parts)
        return own(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions, "open_session", watched)
    return seen


@pytest.mark.parametrize("adapter", [None, "wide"])
def test_same_bits(bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, adapter: str | None) -> None:
    before = logits(bundle, adapter)
    done = warm(read_bundle(bundle), "q4")
    assert done.made == 1
    assert done.bytes == sum(path.stat().st_size for path in done.folders[0].iterdir())
    assert {path.name for path in done.folders[0].iterdir()} == {"model.onnx", "model.onnx_data", "entry.json"}
    seen = opened_from(monkeypatch)
    assert np.array_equal(logits(bundle, adapter), before)
    assert seen == [True]
    assert warm(read_bundle(bundle), "q4").made == 0


def test_a_large_copy_is_hashed_when_it_is_made(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens it first need not. A copy that was written to since is hashed all the same, and found damaged."""
    monkeypatch.setattr(warming, "SLOW", 0)
    place = warm(read_bundle(bundle), "q4").folders[0]
    logits(bundle)  # the bundle's own files
    hashed: list[str] = []
    own = VerifiedFile.sha256
    monkeypatch.setattr(VerifiedFile, "sha256", lambda self: (hashed.append(self.path.name), own(self))[1])
    seen = opened_from(monkeypatch)
    logits(bundle)
    assert seen == [True]
    assert "model.onnx_data" not in hashed
    (place / "model.onnx_data").write_bytes((place / "model.onnx_data").read_bytes()[::-1])
    logits(bundle)
    assert "model.onnx_data" in hashed
    assert seen == [True, False]


def test_the_weights_are_packed(bundle: Path) -> None:
    import onnx

    (folder,) = warm(read_bundle(bundle), "q4").folders
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    keys = {entry.key for tensor in graph.graph.initializer for entry in tensor.external_data}
    assert any(key.startswith("prepacked_") for key in keys)


@pytest.mark.parametrize("damage", ["weights", "graph", "size", "record", "missing"])
@pytest.mark.parametrize("verify", ["always", "changed"])
def test_a_damaged_copy_is_passed_over_and_made_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, damage: str, verify: str
) -> None:
    before = logits(bundle)
    (folder,) = warm(read_bundle(bundle), "q4").folders
    file = folder / {"graph": "model.onnx", "record": "entry.json"}.get(damage, "model.onnx_data")
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "size":
        file.write_bytes(content[:-1])
    elif damage == "record":
        file.write_bytes(b"{")
    else:
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    seen = opened_from(monkeypatch)
    assert np.array_equal(logits(bundle, verify=verify), before)
    assert seen == [False]
    assert warm(read_bundle(bundle), "q4").made == 1
    assert np.array_equal(logits(bundle, verify=verify), before)
    assert seen == [False, True]


def test_another_runtime_processor_or_weights_have_another_copy(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = read_bundle(bundle)
    file = opened.manifest.variants["q4"].file
    keys = {key_of(opened, file), key_of(opened, opened.manifest.variants["fp32"].file)}
    monkeypatch.setattr("onnxruntime.__version__", "0.0.1")
    keys.add(key_of(opened, file))
    monkeypatch.setattr(warming, "processor", lambda: "another")
    keys.add(key_of(opened, file))
    assert len(keys) == 4


def test_two_builders_make_one_copy(bundle: Path, cache: Path) -> None:
    opened, found = read_bundle(bundle), []
    threads = [threading.Thread(target=lambda: found.append(warm(opened, "q4").made)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 0, 1]
    assert len([path for path in (cache / FOLDER).iterdir() if path.is_dir()]) == 1


def test_copies_used_longest_ago_go_first(bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    opened = read_bundle(bundle)
    (first,) = warm(opened, "q4").folders
    os.utime(first / "entry.json", (1, 1))
    monkeypatch.setattr(warming, "LIMIT", 0)
    (second,) = warm(opened, "fp32").folders
    assert not first.exists()
    assert second.exists(), "what was asked for stays"
    warm(opened, "fp32")
    assert second.exists()


def test_a_build_that_fails_leaves_nothing(bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(warming, "hash_file", full)
    with pytest.raises(BundleError, match="the disk is full"):
        warm(read_bundle(bundle), "q4")
    assert list((cache / FOLDER).iterdir()) == []


def test_a_bundle_that_is_damaged_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    weights = copy / "onnx" / "model_q4.onnx_data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 255
    weights.write_bytes(content)
    with pytest.raises(CorruptBundleError):
        warm(read_bundle(copy, verify="always"), "q4")


def test_without_a_home_there_is_no_copy_and_no_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("no home")

    before = logits(bundle)
    monkeypatch.delenv("EDGEPEFT_CACHE")
    monkeypatch.setattr(Path, "home", none)
    assert np.array_equal(logits(bundle, verify="never"), before)


def test_command(bundle: Path, cache: Path) -> None:
    from click.testing import CliRunner

    from edgepeft.cli import main

    done = CliRunner().invoke(main, ["warm", str(bundle), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["variant"], said["made"]) == ("q4", 1)
    listed = CliRunner().invoke(main, ["cache", "list", "--json"])
    assert f"warm/{Path(said['folders'][0]).name}" in listed.stdout
