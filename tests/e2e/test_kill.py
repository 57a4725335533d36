"""Killed at any point, a command leaves the old bundle whole, and the next command cleans up after it."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from causal import build_causal

from edgepeft.bundle import read_bundle, replacing
from edgepeft.report import write_reports
from edgepeft.report.gate import Gate, Report

from .conftest import call, small_files, snapshot, spawn

pytestmark = pytest.mark.e2e


def leftovers(bundle: Path) -> list[str]:
    """Hidden folders beside the bundle: what a writer writes into. The lock is an empty file, and says nothing by itself."""
    return sorted(p.name for p in bundle.parent.iterdir() if p != bundle and p.name.startswith(".") and p.is_dir())


def staged(bundle: Path, ending: str = "") -> int:
    """Files in the temporary siblings so far; the writer may be removing one of them meanwhile, which `walk` bears."""
    walks = (os.walk(bundle.parent / name) for name in leftovers(bundle))
    return sum(file.endswith(ending) for walk in walks for _, _, files in walk for file in files)


def kill_when(ready: Callable[[], bool], *arguments: object) -> bool:
    """SIGKILL the command once ``ready``; whether it was still running."""
    process = spawn(*arguments)
    try:
        while process.poll() is None and not ready():
            time.sleep(0.001)
        return process.poll() is None
    finally:
        process.kill()
        process.communicate()


def check_whole(bundle: Path, before: dict[str, bytes]) -> None:
    """The bundle is the old one to the last byte, or the new one complete."""
    found = snapshot(bundle)
    if found["edgepeft.json"] == before["edgepeft.json"]:
        assert found == before
    read_bundle(bundle).verify()
    assert call("run", bundle, "a good film", "--adapter", "reviews").exit_code == 0


@pytest.mark.parametrize("command", ["add", "quantize"])
def test_killed_while_the_copy_grows(bundle: Path, adapters: dict[str, Path], command: str) -> None:
    """Kills after the first, a middle and the last file of the staged copy, and once at random."""
    arguments = {
        "add": ["add", bundle, "--adapter", f"register={adapters['register']}"],
        "quantize": ["quantize", bundle, "--variant", "int8"],
    }[command]
    before = snapshot(bundle)
    killed = 0
    count = len(before)
    for threshold in (1, count // 2, count + 1, random.Random(command).randint(2, count)):
        killed += kill_when(lambda least=threshold: staged(bundle) >= least, *arguments)  # type: ignore[misc]
        check_whole(bundle, before)
        if "register" in (bundle / "edgepeft.json").read_text() or "int8" in (bundle / "edgepeft.json").read_text():
            shutil.rmtree(bundle)  # it came through: start from the old one again
            for name, content in before.items():
                (bundle / name).parent.mkdir(parents=True, exist_ok=True)
                (bundle / name).write_bytes(content)
    assert killed >= 2, "too few of the kills hit; they test nothing"
    assert len(leftovers(bundle)) <= 1, "a later run removes what an earlier one left"
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert leftovers(bundle) == []
    assert not bundle.with_name(".bundle.lock").exists()
    read_bundle(bundle).verify()


def test_killed_while_an_export_writes(bundle: Path, encoder: Path, adapters: dict[str, Path]) -> None:
    before = snapshot(bundle)
    running = kill_when(
        lambda: staged(bundle) >= 5,
        "export", "--model", encoder, "--adapter", f"register={adapters['register']}", "--out", bundle,
    )  # fmt: skip
    assert running
    assert snapshot(bundle) == before
    assert len(leftovers(bundle)) == 1
    assert call("add", bundle, "--adapter", f"register={adapters['register']}").exit_code == 0
    assert leftovers(bundle) == []


def test_only_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    """A sibling that a living process (here: this one) writes into stays, and so does anything that is not ours."""
    target, other = tmp_path / "b", tmp_path / "b.c"
    dead = tmp_path / ".b.abcdefgh.tmp"
    dead.mkdir()
    (dead / "half").write_text("written")
    kept = [tmp_path / name for name in (".b.notes", ".b.x.y.tmp", ".bb.abcdefgh.tmp")]
    for path in kept:
        path.mkdir()
    with replacing(other, keep=False) as mine:
        (mine / "file").write_text("c")
        with replacing(target, keep=False) as first, replacing(target, keep=False) as second:
            assert first.is_dir()
            assert second.is_dir()
            assert not dead.exists()
            (first / "file").write_text("1")
            (second / "file").write_text("2")
    assert (other / "file").read_text() == "c"
    assert (target / "file").read_text() == "1"  # the outer block ends last
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["b", "b.c", *(p.name for p in kept)])


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "b", keep=False) as folder:
            (folder / "file").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_terminated_command_takes_its_worker_along(bundle: Path) -> None:
    """``timeout 60 edgepeft bench …`` sends SIGTERM to the command alone."""
    process = spawn("bench", bundle, "--shape", "1x8", "--processes", 9)
    try:
        children = wait_for(lambda: children_of(process.pid))
        process.terminate()
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + 15
    assert "Traceback" not in said
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    report = json.loads((bundle / "report" / "bench.json").read_text())
    assert (report["verdict"], report["data"]["partial"]) == ("inconclusive", "ended by signal 15")


def test_a_killed_command_leaves_no_earlier_pass(bundle: Path) -> None:
    path = bundle / "report" / "bench.json"
    earlier = Report(kind="bench", title="Bench of b", gates=(Gate.holds("it is good", True),))
    write_reports(path.parent, "bench", earlier)
    before = path.read_bytes()
    assert kill_when(lambda: path.read_bytes() != before, "bench", bundle, "--shape", "1x8", "--processes", 9)
    report = json.loads(path.read_text())
    assert (report["verdict"], report["data"]["partial"]) == ("inconclusive", "it is still running, or was killed")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_terminated_command_removes_what_it_had_begun(bundle: Path) -> None:
    before = snapshot(bundle)
    process = spawn("quantize", bundle, "--variant", "int8")
    try:
        wait_for(lambda: staged(bundle) > 2 or process.poll() is not None)
        ended = process.poll() is not None
        process.terminate()
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert not ended, "it must be in the middle of it"
    assert leftovers(bundle) == []
    check_whole(bundle, before)


def wait_for(ready: Callable[[], Any]) -> Any:
    for _ in range(3000):
        if found := ready():
            return found
        time.sleep(0.01)
    raise AssertionError("nothing after 30 s")


def children_of(parent: int) -> list[int]:
    """Python processes that ``parent`` has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split(" (", 1)[1].rsplit(") ", 1)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if int(rest.split()[1]) == parent and "python" in name:
            found.append(int(stat.parent.name))
    return found


def in_shards(folder: Path) -> Path:
    """A tiny random Llama in bfloat16 shards."""
    import torch
    from transformers import AutoModelForCausalLM

    whole = build_causal(folder / "whole")
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model", max_shard_size="60KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(whole / name, folder / "model" / name)
    assert len(list((folder / "model").glob("*.safetensors"))) > 1
    return folder / "model"


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_a_file_that_cannot_grow_leaves_the_old_bundle(tmp_path: Path) -> None:
    """The system itself refuses the next byte half-way into the weights, as a full disk does."""
    model, out = in_shards(tmp_path), tmp_path / "place" / "bundle"
    export = ("export", "--model", model, "--variant", "q4", "--out", out)
    assert call(*export).exit_code == 0
    before = snapshot(out)
    most = max(map(len, before.values())) // 2
    process = spawn(*export, "--slots", "all-linear", **small_files(most))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert "bundle was left as it was" in said
    assert "a limit of the sizes of files is reached" in said
    assert "Traceback" not in said
    assert snapshot(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_killed_while_a_language_model_is_written_straight(tmp_path: Path) -> None:
    """While its weights are written, while it is compared, and once at random: the old bundle stays, and the next run cleans up."""
    model, out = in_shards(tmp_path), tmp_path / "place" / "bundle"
    export = ("export", "--model", model, "--variant", "q4", "--out", out)
    first = call(*export)
    assert first.exit_code == 0, first.output
    before = snapshot(out)

    some = random.Random(7).randint(1, len(before))
    moments: list[Callable[[], bool]] = [
        lambda: staged(out, ".onnx_data") > 0,
        lambda: staged(out, ".exact.onnx") > 0,
        lambda: staged(out) >= some,
    ]
    killed = sum(kill_when(moment, *export, "--slots", "all-linear") for moment in moments)
    assert killed >= 2, "too few of the kills hit; they test nothing"
    assert snapshot(out) == before
    assert len(leftovers(out)) <= 1
    done = call(*export, "--slots", "all-linear")
    assert done.exit_code == 0, done.output
    assert leftovers(out) == []
    assert snapshot(out) != before
    read_bundle(out).verify()
