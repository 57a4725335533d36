"""The targets commands on a tiny bundle: pack, freeze, coverage, compare; what they print and how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepeft import runtime


def good(done: Any) -> Any:
    assert done.exit_code == 0, done.output
    return done


def test_pack_then_run(cli: Any, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "phone"
    said = json.loads(
        good(cli("targets", "pack", bundle, "--target", "android-arm64-cpu", "--out", out, "--json")).stdout
    )
    assert said["variant"] == "int8"
    assert (out / "onnx" / "model_int8.ort").is_file()
    assert not (out / "onnx" / "model.onnx").exists()
    assert good(cli("run", out, "a good film", "--adapter", "reviews", "--json"))
    assert runtime.open(out).variant == "int8"
    text = good(cli("targets", "pack", bundle, "--target", "linux-x64-cpu", "--out", tmp_path / "pc")).stdout
    assert "int8 for linux-x64-cpu, 0." in text


def test_export_with_a_target_refuses_what_is_too_large(
    cli: Any, encoder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'extends = "linux-x64-cpu"\nname = "mine"\nsummary = "s"\n[budgets]\nbundle_mb = 0.01\nadapter_mb = 0.01\n'
    )
    arguments = ("export", "--model", encoder, "--adapter", f"reviews={adapters['reviews']}", "--out", tmp_path / "out")
    done = cli(*arguments, "--target", mine)
    assert done.exit_code == 2
    assert "its budget is bundle_mb = 0.01; nothing was written" in done.stderr
    assert not (tmp_path / "out").exists()
    done = cli(*arguments, "--target", "moon")
    assert (done.exit_code, "unknown target 'moon'" in done.stderr) == (2, True)


def test_freeze_coverage_compare(cli: Any, bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'extends = "ios-coreml"\nname = "mine"\nsummary = "s"\n[graph]\nbuckets = ["1x8", "1x32", "1x128"]\n'
    )
    arguments = ("targets", "freeze", bundle, "--adapter", "reviews", "--out", tmp_path / "static", "--json")
    done = cli(*arguments, "--target", mine)
    assert (done.exit_code, "bucket 1x128 of mine" in done.stderr) == (2, True)
    mine.write_text(mine.read_text().replace(', "1x128"', "").replace("[graph]", "[budgets.p50_ms]\n[graph]"))
    done = cli(*arguments, "--target", mine)
    assert done.exit_code == 2, "ios-coreml's budget for 1x128 is inherited, and no bucket"
    mine.write_text(mine.read_text().replace('extends = "ios-coreml"', 'extends = "./base.toml"'))
    (tmp_path / "base.toml").write_text(
        'name = "base"\nsummary = "s"\n[machine]\nos = "ios"\narch = "arm64"\n[runtime]\nonnxruntime = "1.20"\n'
        'providers = ["CoreMLExecutionProvider"]\nthreads = 1\n[graph]\nshapes = "static"\nbuckets = ["1x8"]\n'
    )
    names = [Path(file).name for file in json.loads(good(cli(*arguments, "--target", mine)).stdout)["files"]]
    assert names == ["reviews_1x8.onnx", "reviews_1x32.onnx"]
    covered = good(cli("targets", "coverage", bundle, "--shape", "1x16")).stdout
    assert "operator not supported" in covered
    assert "What each provider would take" in covered
    assert (bundle / "report" / "coverage.json").is_file()
    compared = cli("targets", "compare", bundle, "--static", "--json")
    assert compared.exit_code == 1  # the web targets want slots as inputs
    assert len(json.loads(compared.stdout)["gates"]) == 11
