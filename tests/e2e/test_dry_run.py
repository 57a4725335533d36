"""--dry-run: what is told is what is then written, and nothing is written before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepeft.bundle import read_bundle

from .conftest import snapshot

pytestmark = pytest.mark.e2e


def good(result: Any) -> Any:
    assert result.exit_code == 0, result.output + result.stderr
    return json.loads(result.stdout)


def test_add(cli: Any, bundle: Path, adapters: dict[str, Path]) -> None:
    before = snapshot(bundle)
    command = ("add", bundle, f"--adapter=register={adapters['register']}", "--json")
    planned = good(cli(*command, "--dry-run"))
    assert snapshot(bundle) == before
    added = good(cli(*command))
    assert (planned.pop("dry_run"), added.pop("dry_run")) == (True, False)
    assert planned == added
    assert planned["files"] == {file: (bundle / file).stat().st_size for file in planned["files"]}
    assert len(planned["files"]) == 2


def test_add_refuses_as_it_would(cli: Any, bundle: Path, adapters: dict[str, Path]) -> None:
    done = cli("add", bundle, f"--adapter=reviews={adapters['reviews']}", "--dry-run")
    assert done.exit_code == 2
    assert "already has an adapter" in done.stderr


def test_pack(cli: Any, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    command = ("targets", "pack", exported, "--target", "android-arm64-cpu", "--out", out, "--json")
    planned = good(cli(*command, "--dry-run"))
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []
    packed = good(cli(*command))
    assert (planned["variant"], list(planned["files"])) == (packed["variant"], list(packed["files"]))
    assert packed["files"] == {name: (out / name).stat().st_size for name in packed["files"]}
    # ONNX Runtime pads a graph in ORT format otherwise from one conversion to the next, by some bytes.
    for name, size in planned["files"].items():
        assert size == pytest.approx(packed["files"][name], abs=64 if name.endswith(".ort") else 0)
    assert planned["mb"] == pytest.approx(packed["mb"], abs=64e-6)


def test_export(cli: Any, encoder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    """Told from headers: the weights within 5 % of what is written, an adapter with its packed q/k/v too."""
    out = tmp_path / "bundle"
    command = ("export", "--model", encoder, f"--adapter=reviews={adapters['reviews']}", "--out", out, "--json")
    planned = good(cli(*command, "--dry-run"))
    assert not out.exists()
    assert planned["fits"] is True
    good(cli(*command))
    for file in planned["files"]:
        if file["name"].startswith("onnx/"):
            manifest = read_bundle(out).manifest
            assert manifest.base.parameters == pytest.approx(planned["parameters"], rel=0.05)
        else:  # names and records, some 2 kB here, stand beside the numbers
            assert file["bytes"] == pytest.approx((out / file["name"]).stat().st_size, rel=0.02, abs=2_500)


def test_export_merged(cli: Any, encoder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    pairs = [f"--adapter={name}={adapters[name]}" for name in ("reviews", "movies")]
    planned = good(
        cli("export", "--model", encoder, *pairs, "--mode", "merge", "--out", tmp_path / "m", "--dry-run", "--json")
    )
    assert [file["name"] for file in planned["files"]] == [
        "reviews/onnx/model.onnx_data",
        "movies/onnx/model.onnx_data",
    ]


def test_export_of_nothing(cli: Any, tmp_path: Path) -> None:
    done = cli("export", "--model", tmp_path, "--out", tmp_path / "x", "--dry-run")
    assert done.exit_code == 2
    assert "config.json" in done.stderr


def test_a_damaged_header_is_an_error(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    done = cli("export", "--model", tmp_path, "--out", tmp_path / "x", "--dry-run")
    assert done.exit_code == 2
    assert "truncated or damaged" in done.stderr
