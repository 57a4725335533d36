"""Merging an adapter into weights of few bits: how much of it is rounded away is said, and swap offered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from causal_models import build_causal
from click.testing import CliRunner
from conftest import save_lora

from edgepeft.base.load import load_model
from edgepeft.cli import main
from edgepeft.errors import InputError, SiteError
from edgepeft.graph.quantized_weights import quantized_weights
from edgepeft.pipeline import export, quantize
from edgepeft.quantize.q4 import q4, quantize_blocks, round_to_blocks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny Llama; bundles of it alone and merged with a faint and a strong adapter, quantized both ways."""
    root = tmp_path_factory.mktemp("rounded")
    folders = {"model": build_causal(root / "model", "llama")}
    options: dict[str, Any] = {"task": "text-generation", "task_type": "CAUSAL_LM", "target_modules": TARGETS}
    for name, scale in (("faint", 0.005), ("strong", 0.4)):
        folders[name] = save_lora(root / name, folders["model"], scale=scale, **options)
        export(folders["model"], {name: folders[name]}, root / f"{name}-merged", mode="merge", task="text-generation")
        folders[f"{name}-merged"] = root / f"{name}-merged"
    export(folders["model"], {}, root / "plain", task="text-generation")
    folders["plain"] = root / "plain"
    for name in ("plain", "faint-merged", "strong-merged"):
        for variant in ("int8", "q4"):
            quantize(folders[name], variant)
    return folders


def stored(bundle: Path, variant: str) -> dict[str, np.ndarray]:
    """The numbers that a variant computes with, by the name of the fp32 weight, ``[out, in]``."""
    graph = ir.load(bundle / "onnx" / f"model_{variant}.onnx")
    if variant == "q4":
        return {name.removesuffix("_q4"): blocks.read() for name, blocks in quantized_weights(graph).items()}
    held = {name: value.const_value for name, value in graph.graph.initializers.items()}
    values = {name: tensor.numpy() for name, tensor in held.items() if tensor is not None}
    found = {}
    for name, array in values.items():
        fp32 = name.removesuffix("_int8")
        tables = f"{fp32}_scales_column" in values  # and heads tied to them, which no adapter here touches
        if name != fp32 and array.dtype == np.int8 and not tables:
            found[fp32] = (array.astype(np.float32) * values[f"{fp32}_scales"]).T
    return found


def measured(made: dict[str, Path], name: str, variant: str) -> float:
    """The relative error of the merged change, out of what the files hold."""
    before, after = (stored(made[b], variant) for b in ("plain", f"{name}-merged"))
    plain, merged = (ir.load(made[b] / "onnx" / "model.onnx") for b in ("plain", f"{name}-merged"))
    lost = wanted = 0.0
    for weight in before:
        one, two = (g.graph.initializers[weight].const_value.numpy().astype(np.float64) for g in (plain, merged))
        if np.array_equal(one, two):
            continue
        change, kept = (two - one).T, after[weight].astype(np.float64) - before[weight]
        lost, wanted = lost + float(np.square(kept - change).sum()), wanted + float(np.square(change).sum())
    assert wanted
    return float(np.sqrt(lost / wanted))


@pytest.mark.parametrize("variant", ["int8", "q4"])
@pytest.mark.parametrize("name", ["faint", "strong"])
def test_what_is_said_is_what_the_files_hold(name: str, variant: str, made: dict[str, Path]) -> None:
    result = quantize(made[f"{name}-merged"], variant, replace=True)
    # The manifest's figure has four decimals.
    assert result.merge_error == pytest.approx(measured(made, name, variant), rel=2e-2)
    assert (result.merge_error > 1) is (name == "faint")  # type: ignore[operator]


def test_the_user_is_told_and_offered_swap(made: dict[str, Path]) -> None:
    run = CliRunner().invoke(main, ["quantize", str(made["faint-merged"]), "--variant", "q4", "--replace"])
    assert run.exit_code == 0, run.output
    assert "'faint' is merged into these weights" in run.output
    assert "relative error of" in run.output
    assert "--mode swap" in run.output
    strong = quantize(made["strong-merged"], "int8", replace=True)
    assert strong.merge_error is not None
    assert strong.merge_error < 0.1
    assert strong.warning == ""
    plain = quantize(made["plain"], "q4", replace=True)
    assert (plain.merge_error, plain.warning) == (None, "")


def test_merging_into_given_blocks_says_how_much_is_lost(made: dict[str, Path], tmp_path: Path) -> None:
    given = made["plain"] / "onnx" / "model_q4.onnx"
    for name, words in (
        ("faint", r"relative error of 1\.00, 9 of its 9 sites would not change at all\); export with --mode swap"),
        ("strong", r"relative error of 0\.\d\d\); export with --mode swap"),
    ):
        with pytest.raises(SiteError, match=words):
            export(made["model"], {name: made[name]}, tmp_path / "m", mode="merge", task="text-generation", onnx=given)
    assert not (tmp_path / "m").exists()


def test_blocks_hold_the_nearest_numbers(made: dict[str, Path], tmp_path: Path) -> None:
    from edgepeft.bundle import SlotTable

    q4(made["plain"] / "onnx" / "model.onnx", tmp_path / "q4.onnx", SlotTable())
    blocks = next(b for n, b in quantized_weights(ir.load(tmp_path / "q4.onnx")).items() if "down_proj" in n)
    held = blocks.read()
    np.testing.assert_allclose(blocks.nearest(held), held, rtol=1e-6)
    rng = np.random.default_rng(0)
    step = np.abs(np.diff(np.unique(held[0, :32]))).min()
    near = held.copy()
    near[0, :32] += rng.uniform(-0.49, 0.49, 32).astype(np.float32) * step
    np.testing.assert_allclose(blocks.nearest(near)[0, :32], held[0, :32], rtol=1e-6)
    weight = rng.standard_normal((5, 40)).astype(np.float32)
    packed, scales = quantize_blocks(weight)
    rounded = round_to_blocks(weight)
    assert rounded.shape == weight.shape
    low = packed[2, 0, 3] & 15
    assert rounded[2, 6] == pytest.approx((float(low) - 8) * scales[2, 0])
    np.testing.assert_allclose(round_to_blocks(rounded), rounded, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "in 4 bits by bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "in 4 bits by gptq"),
        ({"quant_method": "fbgemm_fp8"}, "quantized by fbgemm_fp8"),
    ],
)
def test_a_checkpoint_in_few_bits_is_refused_with_the_way_out(
    settings: dict[str, Any], words: str, made: dict[str, Path], tmp_path: Path
) -> None:
    for file in made["model"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(InputError, match=rf"is stored {words}.*--mode swap.*dequantize\(\)"):
        load_model(tmp_path, task="text-generation")
