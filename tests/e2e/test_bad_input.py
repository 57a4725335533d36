"""What is refused: exit code 2, a message that says what, where and what to do, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from .conftest import call, save_adapter, small_files, snapshot, spawn

pytestmark = pytest.mark.e2e

Edit = Callable[[Path], object]


def refuse(
    *arguments: object, says: tuple[str, ...], unchanged: Path | None = None, stdin: bytes | None = None
) -> None:
    """The call must exit with 2 and say all of ``says`` on standard error, not on standard output."""
    before = None if unchanged is None else snapshot(unchanged)
    done = call(*arguments, stdin=stdin)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    for part in says:
        assert part in done.stderr
    if unchanged is not None:
        assert snapshot(unchanged) == before


def copy(checkpoint: Path, to: Path) -> Path:
    return Path(shutil.copytree(checkpoint, to))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(checkpoint: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    from safetensors.numpy import load_file, save_file

    path = checkpoint / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# Adapters


def test_adapter_of_a_base_with_other_sizes(bundle: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48, vocab_size=69)
    BertModel(config).save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "wide", tmp_path / "base", ["a", "b"], seed=1)
    for force in ([], ["--force"]):
        refuse("add", bundle, "--adapter", f"w={tmp_path / 'wide'}", *force,
               says=("another base", "64", "32") if force else ("base",), unchanged=bundle)  # fmt: skip


def test_adapter_of_the_same_sizes_with_other_weights(
    bundle: Path, encoder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    other = copy(adapters["register"], tmp_path / "other")
    edit_json(other / "edgepeft_adapter.json", base_identity="0" * 64)
    for force in ([], ["--force"]):  # no force makes the numbers right
        refuse("add", bundle, "--adapter", f"other={other}", *force,
               says=("identity 0000000000000000…", "this base"), unchanged=bundle)  # fmt: skip


def test_exported_adapter_of_another_base(bundle: Path, tmp_path: Path) -> None:
    from edgepeft.adapters.files import read_adapter_onnx, write_adapter_onnx

    found = read_adapter_onnx(bundle / "adapters/reviews.onnx")
    write_adapter_onnx(tmp_path / "x.onnx", found.tensors, {**found.metadata, "base_identity": "1" * 64})
    refuse(
        "add", bundle, "--adapter", f"x={tmp_path}/x.onnx", says=("another base", "1111111111111111…"), unchanged=bundle
    )
    shutil.copy(bundle / "adapters/reviews.onnx_adapter", tmp_path / "alone.onnx_adapter")
    refuse("add", bundle, "--adapter", f"x={tmp_path}/alone.onnx_adapter", says=("put alone.onnx",), unchanged=bundle)
    shutil.copy(bundle / "adapters/movies.onnx", tmp_path / "alone.onnx")
    refuse("add", bundle, "--adapter", f"x={tmp_path}/alone.onnx_adapter", says=("two different",), unchanged=bundle)
    (tmp_path / "cut.onnx").write_bytes((bundle / "adapters/movies.onnx").read_bytes()[:500])
    refuse("add", bundle, "--adapter", f"x={tmp_path}/cut.onnx", says=("cut.onnx", "damaged"), unchanged=bundle)
    refuse("add", bundle, "--adapter", f"x={tmp_path}/none.onnx", says=("no file", "none.onnx"), unchanged=bundle)


def test_foreign_checkpoint_that_names_another_base(bundle: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    foreign = copy(adapters["register"], tmp_path / "foreign")
    edit_json(foreign / "adapter_config.json", base_model_name_or_path="someone/else")
    refuse("add", bundle, "--adapter", f"f={foreign}", says=("'someone/else'", "--force"), unchanged=bundle)
    done = call("add", bundle, "--adapter", f"f={foreign}", "--force", "--json")
    assert done.exit_code == 0
    assert "because of --force" in done.stderr
    assert json.loads(done.stdout)["adapter"] == "f"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: edit_tensors(p, lambda t: t.update(stray=np.ones(2, np.float32))), ("nothing consumes", "stray")),
        (lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"), ("pickle", "safe_serialization")),
        (lambda p: (p / "adapter_model.safetensors").unlink(), ("holds no adapter_model.safetensors",)),
        (lambda p: (p / "adapter_config.json").unlink(), ("holds no adapter_config.json", "not a PEFT checkpoint")),
        (lambda p: (p / "adapter_config.json").write_text("{"), ("adapter_config.json", "cannot read")),
        (lambda p: (p / "adapter_model.safetensors").write_bytes(b"\x08" + bytes(40)), ("damaged", "safetensors")),
        (
            lambda p: (p / "adapter_model.safetensors").write_bytes((p / "adapter_model.safetensors").read_bytes()[:-9]),
            ("truncated", "adapter_model.safetensors"),
        ),
        (lambda p: edit_json(p / "adapter_config.json", peft_type="LATER"), ("LATER", "not lowered")),
        (lambda p: edit_json(p / "adapter_config.json", peft_type="LOHA"), ("LOHA", "did not take", "lora_A")),
        (lambda p: edit_json(p / "adapter_config.json", r=5), ("rank 4", "says 5")),
        (lambda p: edit_json(p / "edgepeft_adapter.json", labels=["a", "b"]), ("3 labels", "names 2", "a, b")),
        (
            lambda p: edit_tensors(p, lambda t: t.pop("base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight")),
            ("lora_A.weight", "missing", "layer.0.attention.self.query"),
        ),
        (
            lambda p: edit_tensors(p, lambda t: [t.pop(k) for k in list(t) if "classifier" in k]),
            ("classifier", "modules_to_save"),
        ),
        (
            lambda p: edit_tensors(p, lambda t: [v.fill(np.nan) for k, v in t.items() if "lora_B" in k]),
            ("NaN",),
        ),
    ],
)  # fmt: skip
def test_checkpoints_that_cannot_be_used(
    bundle: Path, adapters: dict[str, Path], tmp_path: Path, damage: Edit, says: tuple[str, ...]
) -> None:
    checkpoint = copy(adapters["register"], tmp_path / "checkpoint")
    damage(checkpoint)
    refuse("add", bundle, "--adapter", f"c={checkpoint}", says=says, unchanged=bundle)


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ("reviews", ("NAME=PATH",)),
        ("=x", ("NAME=PATH",)),
        ("x=", ("NAME=PATH",)),
        ("../x=reviews", ("cannot be a name", "letters")),
        (".x=reviews", ("cannot be a name",)),
        (f"{'a' * 65}=reviews", ("cannot be a name",)),
        ("x=no/such", ("'no/such'", "neither a local folder nor a Hugging Face id")),
        ("x=no such", ("'no such'", "neither a local folder nor a Hugging Face id")),
        ("reviews={reviews}", ("already has an adapter 'reviews'", "--replace")),
    ],
)
def test_names_and_places(
    bundle: Path, encoder: Path, adapters: dict[str, Path], adapter: str, says: tuple[str, ...]
) -> None:
    adapter = adapter.format(**adapters)
    refuse("add", bundle, "--adapter", adapter, says=says, unchanged=bundle)
    if "already" not in says[0]:
        out = bundle.parent / "new"
        start = perf_counter()
        refuse("export", "--model", encoder, "--adapter", adapter, "--out", out, says=says)
        assert not out.exists()
        assert perf_counter() - start < 5  # offline, a name on the hub is no reason to retry


def test_export_refuses_early(encoder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    pair = f"a={adapters['reviews']}"
    refuse("export", "--model", encoder, f"--adapter={pair}", f"--adapter={pair}", "--out", out, says=("given twice",))
    refuse("export", "--model", encoder, "--mode", "merge", "--out", out, says=("at least one --adapter",))
    refuse("export", "--model", encoder, "--task", "image-classification", "--out", out, says=("image-classification",))
    refuse("export", "--model", tmp_path / "none", "--out", out, says=("none", "neither a folder with config.json"))
    start = perf_counter()
    refuse("export", "--model", "no/such", "--out", out, says=("'no/such'", "neither a folder with config.json"))
    assert perf_counter() - start < 5
    assert not out.exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    refuse("export", "--model", encoder, f"--adapter={pair}", "--out", mine, says=("is not a bundle",), unchanged=mine)
    refuse("export", "--model", encoder, f"--adapter={pair}", "--out", mine / "thesis.txt", says=("is not a bundle",))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


# Names that a bundle does not have


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "{bundle}", "x", "--adapter", "nope"], ("no adapter 'nope'", "reviews, movies")),
        (["run", "{bundle}", "x", "--variant", "q9"], ("no variant 'q9'", "fp32")),
        (["run", "{bundle}", "x", "--threads", "0"], ("--threads",)),
        (["run", "{bundle}", "x", "--adapter", "reviews", "--scale", "nan"], ("finite",)),
        (["run", "{bundle}"], ("no text",)),
        (["run", "{bundle}", "x\udcff", "--adapter", "reviews"], ("not a text",)),
        (["run", "{bundle}", "--file", "{bundle}/none.txt"], ("none.txt", "No such file")),
        (["run", "{bundle}", "--file", "{bundle}/config.json", "--column", "nope"], ("config.json, line 1",)),
        (["run", "{bundle}/none", "x"], ("no bundle at",)),
        (["run", "{bundle}/onnx", "x"], ("is not a bundle", "edgepeft export")),
        (["validate", "{bundle}", "--data", "nope={rows}"], ("no adapter 'nope'", "movies, reviews")),
        (["validate", "{bundle}", "--adapter", "nope={rows}"], ("no adapter 'nope'",)),
        (["validate", "{bundle}", "--variant", "q9"], ("no variant 'q9'",)),
        (["validate", "{bundle}", "--model", "nobody/nothing"],
         ("cannot compare with PEFT", "'nobody/nothing'", "--model", "--no-reference")),
        (["validate", "{bundle}", "--target", "linux-x64-cpu", "--model", "nobody/nothing"],
         ("cannot compare with PEFT", "'nobody/nothing'", "--no-reference")),
        (["validate", "{bundle}", "--data", "movies={rows}", "--no-reference"],
         ("rows.jsonl, line 1", "'good'", "poor, great")),
        (["bench", "{bundle}", "--adapter", "nope"], ("no adapter 'nope'", "reviews, movies")),
        (["bench", "{bundle}", "--variant", "q9"], ("no variant 'q9'",)),
        (["bench", "{bundle}", "--target", "toaster"], ("toaster", "linux-x64-cpu")),
        (["bench", "{bundle}", "--shape", "1x99"], ("1x99", "32 tokens")),
        (["bench", "{bundle}", "--shape", "big"], ("big",)),
        (["bench", "{bundle}", "--processes", "1"], ("--processes",)),
        (["check", "{bundle}", "--shape", "1x8", "--baseline", "{bundle}/none"], ("none",)),
        (["check", "{bundle}", "--shape", "1x8", "--baseline", "{rows}"], ("rows.jsonl", "bench report")),
        (["check", "{bundle}", "--baseline", "{bundle}", "--data", "nope={rows}"], ("'nope'",)),
        (["quantize", "{bundle}", "--variant", "q9"], ("q9", "int8")),
        (["quantize", "{bundle}", "--variant", "w8a16"], ("none are given", "--data NAME=FILE")),
        (["quantize", "{bundle}", "--variant", "w8a16", "--data", "nope={rows}"], ("no adapter 'nope'", "reviews")),
        (["quantize", "{bundle}", "--variant", "w8a16", "--data", "*={rows}", "--text", "body"], ("line 1", "'body'")),
        (["quantize", "{bundle}", "--variant", "w8a16", "--data", "*={bundle}/none.csv"], ("none.csv", "No such file")),
        (["quantize", "{bundle}", "--variant", "w8a16", "--data", "*={rows}", "--rows", "0"], ("--rows",)),
        (["quantize", "{bundle}", "--variant", "int8", "--data", "*={rows}"], ("leave the data out",)),
        (["export", "--model", "m", "--out", "{bundle}/x", "--data", "*={rows}"], ("--data is for", "--target")),
        (["inspect", "{bundle}/none"], ("does not exist",)),
        (["inspect", "{bundle}/config.json"], ("neither a bundle",)),
        (["inspect", "{bundle}/onnx/model.onnx"], ("not an adapter that edgepeft exported",)),
        (["inspect"], ("PATH is missing",)),
        (["targets", "show", "toaster"], ("toaster", "linux-x64-cpu")),
    ],
)  # fmt: skip
def test_unknown_names(exported: Path, rows: Path, arguments: list[str], says: tuple[str, ...]) -> None:
    refuse(*(a.format(bundle=exported, rows=rows) for a in arguments), says=says, unchanged=exported)


def test_target_files(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for text, says in (
        ('extends = "linux-x64-cpu"\nname = "mine"\n[budgets]\nswap_mss = 1\n', ("mine.toml", "swap_mss")),
        ('extends = "linux-x64-cpu"\nname = "mine"\n[budgets]\nswap_ms = "fast"\n', ("mine.toml", "swap_ms")),
        ("name = \n", ("mine.toml", "line 1")),
        ('extends = "toaster"\nname = "mine"\n', ("toaster",)),
    ):
        path.write_text(text)
        refuse("bench", exported, "--target", path, says=says)
        refuse("targets", "show", path, says=says)
    refuse("targets", "show", tmp_path / "none.toml", says=("none.toml",))


# Bundles


def manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "edgepeft.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: (b / "edgepeft.json").write_text('{"a": '), ("edgepeft.json is not JSON", "line 1")),
        (lambda b: (b / "edgepeft.json").write_bytes(b"\xff"), ("edgepeft.json",)),
        (lambda b: (b / "edgepeft.json").write_text("[]"), ("schema_version",)),
        (lambda b: manifest(b, lambda m: m.update(schema_version=99)), ("schema_version 99", "reads version 1")),
        (lambda b: manifest(b, lambda m: m.update(colour="red")), ("colour",)),
        (lambda b: manifest(b, lambda m: m["variants"]["fp32"].update(file="../model.onnx")), ("../model.onnx",)),
        (lambda b: manifest(b, lambda m: m["variants"]["fp32"].update(file="/etc/passwd")), ("/etc/passwd",)),
        (lambda b: manifest(b, lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}})), ("../x",)),
        (lambda b: manifest(b, lambda m: m["base"].update(identity="0" * 64)), ("base identity", "0000000000000000…")),
        (lambda b: (b / "adapters/reviews.onnx_adapter").unlink(), ("reviews.onnx_adapter", "missing")),
        (lambda b: os.truncate(b / "onnx/model.onnx", 1000), ("model.onnx has 1000 bytes", "manifest says")),
        (lambda b: os.truncate(b / "adapters/movies.onnx_adapter", 9), ("movies.onnx_adapter has 9 bytes",)),
        (lambda b: flip(b / "adapters/reviews.onnx_adapter"), ("reviews.onnx_adapter", "was changed", "sha256")),
        (lambda b: flip(b / "onnx/model.onnx"), ("model.onnx", "was changed", "sha256")),
        (lambda b: flip(b / "tokenizer.json"), ("tokenizer.json", "was changed")),
        (lambda b: link_outside(b / "onnx/model.onnx"), ("model.onnx", "link that leaves")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["run", "inspect"])
def test_damaged_bundles(bundle: Path, command: str, damage: Edit, says: tuple[str, ...]) -> None:
    damage(bundle)
    arguments = ["x", "--adapter", "reviews"] if command == "run" else []
    refuse(command, bundle, *arguments, says=says, unchanged=bundle)


def test_a_task_of_another_version(bundle: Path) -> None:
    manifest(bundle, lambda m: m.update(task="world-peace"))
    refuse("run", bundle, "x", says=("world-peace", "text-classification"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link_outside(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def test_a_damaged_bundle_is_not_changed_or_measured(bundle: Path, adapters: dict[str, Path], rows: Path) -> None:
    flip(bundle / "onnx/model.onnx")
    says = ("model.onnx", "was changed")
    refuse("add", bundle, "--adapter", f"r={adapters['register']}", says=says, unchanged=bundle)
    refuse("quantize", bundle, "--variant", "int8", says=says, unchanged=bundle)
    refuse("validate", bundle, "--data", f"reviews={rows}", says=says, unchanged=bundle)
    refuse("bench", bundle, "--processes", "2", "--shape", "1x8", says=says, unchanged=bundle)
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["bundle"]


# Data


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"text,label\nfine,good\nsch\xf6n,good\n", ("a.csv, line 3", "0xf6", "UTF-8")),
        ("a.csv", b"text,kind\nfine,good\n", ("a.csv, line 2", "no column 'label'", "text, kind")),
        ("a.csv", b"text,label\nfine,good\nbad, \n", ("a.csv, line 3", "label is empty")),
        ("a.csv", b"text,label\nfine,good\nbad,ugly\n", ("a.csv, line 3", "'ugly'", "bad, good")),
        ("a.csv", b"text,label\nfine,good\na,b,c,d\n", ("a.csv, line 3", "more fields")),
        ("a.csv", b"text,label\n", ("a.csv", "no data rows")),
        ("a.csv", b"", ("a.csv", "empty")),
        ("a.jsonl", b'{"text": "fine", "label": "good"}\n{"text": "bad"}\n', ("a.jsonl, line 2", "'label'")),
        ("a.jsonl", b'{"text": "fine", "label": "good"}\nnot json\n', ("a.jsonl, line 2", "JSON")),
        ("a.jsonl", b'\n{"text": 7, "label": "good"}\n', ("a.jsonl, line 2", "must be a string")),
        ("a.xml", b"<a/>", ("a.xml", ".csv, .tsv, .jsonl, .json or .parquet")),
    ],
)  # fmt: skip
def test_data_rows(exported: Path, tmp_path: Path, name: str, content: bytes, says: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(content)
    refuse(
        "validate", exported, "--data", f"reviews={tmp_path / name}", "--no-reference", says=says, unchanged=exported
    )


def test_data_options(exported: Path, tmp_path: Path, rows: Path) -> None:
    none = tmp_path / "none.csv"
    refuse("validate", exported, "--data", f"reviews={none}", says=("none.csv", "No such file"))
    refuse("validate", exported, "--data", str(rows), says=("--data", "NAME=PATH"))
    twice = [f"--data=reviews={rows}", f"--data=reviews={rows}"]
    refuse("validate", exported, *twice, says=("given twice",))
    refuse("run", exported, "--file", "-", says=("standard input, line 2", "0xff"), stdin=b"fine\n\xff\n")
    refuse("train", "--model", "x", "--data", none, "--out", tmp_path / "out", says=("none.csv",))
    assert list(tmp_path.iterdir()) == []


def test_json_errors_are_json(exported: Path) -> None:
    done = call("run", exported, "x", "--adapter", "nope", "--json")
    assert done.exit_code == 2
    error = json.loads(done.stdout)
    assert error["type"] == "UnknownAdapterError"
    assert "no adapter 'nope'" in error["error"]


# The system


def test_disk_full(bundle: Path, adapters: dict[str, Path]) -> None:
    """Files of this process may hold 64 kB: every write of the base fails, as on a full disk."""
    before = snapshot(bundle)
    for arguments in (
        ["add", bundle, "--adapter", f"r={adapters['register']}"],
        ["quantize", bundle, "--variant", "int8"],
    ):
        process = spawn(*arguments, **small_files(65_536))
        _, said = process.communicate()
        assert process.returncode == 2, said
        assert "was left as it was" in said
        assert "too large" in said.lower()
        assert snapshot(bundle) == before
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["bundle"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(bundle: Path, adapters: dict[str, Path]) -> None:
    bundle.parent.chmod(0o555)
    try:
        refuse("add", bundle, "--adapter", f"r={adapters['register']}", says=("Permission denied",), unchanged=bundle)
    finally:
        bundle.parent.chmod(0o755)


def test_an_adapter_without_slots_here(bundle: Path, encoder: Path, tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "dense", encoder, ["a", "b"], seed=9, target_modules=["intermediate.dense"])
    says = ("layer.0.intermediate.dense", "no slot", "--slots all-linear", "merge")
    refuse("add", bundle, "--adapter", f"dense={path}", says=says, unchanged=bundle)
