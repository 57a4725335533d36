"""Which variant runs where none is named, sizes by their names, and static checks that hold targets to their shapes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.quantize.recipes import preferred_variant

pytestmark = pytest.mark.e2e


def good(result: Any) -> Any:
    assert result.exit_code == 0, result.output + result.stderr
    return result


def test_run_takes_the_preferred_variant_and_says_so(cli: Any, bundle: Path) -> None:
    alone = good(cli("run", bundle, "a good film", "--adapter", "reviews", "--json"))
    assert alone.stderr == ""
    good(cli("quantize", bundle, "--variant", "int8"))
    said = good(cli("run", bundle, "a good film", "--adapter", "reviews", "--json"))
    assert "running int8, which this bundle prefers; --variant chooses fp32" in said.stderr
    probabilities = {
        name: runtime.open(bundle, variant=name, threads=1).use("reviews").run(["a good film"])[0]["score"]
        for name in ("int8", "fp32")
    }
    assert probabilities["int8"] != probabilities["fp32"]
    assert json.loads(said.stdout)[0]["score"] == pytest.approx(probabilities["int8"], abs=1e-6)
    plain = good(cli("run", bundle, "a good film", "--adapter", "reviews", "--json", "--variant", "fp32"))
    assert plain.stderr == ""
    assert json.loads(plain.stdout)[0]["score"] == pytest.approx(probabilities["fp32"], abs=1e-6)


@pytest.mark.parametrize(
    ("variants", "writes", "expected"),
    [
        (["fp32", "int8"], False, "int8"),
        (["fp32", "q4"], True, "q4"),
        (["fp32", "int8"], True, "fp32"),
        (["fp32", "w8a16"], False, "fp32"),
        (["w8a16"], False, "w8a16"),
    ],
)
def test_what_is_preferred(variants: list[str], writes: bool, expected: str) -> None:
    assert preferred_variant(variants, writes=writes) == expected


def test_sizes_say_what_they_are_of(cli: Any, bundle: Path, adapters: dict[str, Path]) -> None:
    """What `add` says is on disk is what the folder grows by, and `inspect` names each size."""
    before = sum(path.stat().st_size for path in bundle.rglob("*.onnx*"))
    said = good(cli("add", bundle, f"--adapter=register={adapters['register']}")).stdout
    grown = sum(path.stat().st_size for path in bundle.rglob("*.onnx*")) - before
    (native, both) = map(float, re.findall(r"([\d.]+) MB", said))
    assert both == pytest.approx(grown / 1e6, abs=0.006)
    assert native == pytest.approx((bundle / "adapters/register.onnx_adapter").stat().st_size / 1e6, abs=0.006)
    shown = good(cli("inspect", bundle)).stdout
    opened = read_bundle(bundle)
    assert f"{opened.size() / 1e6:.2f} MB on disk" in shown
    assert "a device gets" in shown
    assert f"{opened.size(opened.manifest.deployed('fp32')) / 1e6:.2f} MB" in shown


def test_static_checks_hold_targets_to_their_shapes(cli: Any, exported: Path, tmp_path: Path) -> None:
    done = cli("targets", "compare", exported, "--static", "--json", "--report", tmp_path)
    report = json.loads(done.stdout)
    verdicts = {gate["name"]: gate for gate in report["gates"]}
    for target in ("ios-coreml", "android-qnn", "android-nnapi"):
        assert verdicts[target]["verdict"] == "inconclusive", verdicts[target]
        assert "targets freeze" in verdicts[target]["detail"]
    taken = re.search(r"CoreML takes (\d+) of (\d+) nodes", verdicts["ios-coreml"]["detail"])
    assert taken is not None
    assert int(taken[1]) < 0.2 * int(taken[2])
    assert verdicts["linux-x64-cpu"]["verdict"] == "pass"
