"""fp16 and q4f16: half precision beside the same adapter files, judged by rounding at every edge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from causal import build_causal_bundle, save_virtual
from click.testing import CliRunner
from conftest import Bases, all_equal, ragged
from encoder_decoder import SEQ2SEQ, made_once

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import BundleError, InputError, ParityError
from edgepeft.pipeline import _halves, add, export, plan_quantize, quantize, remove, write_input_style
from edgepeft.pipeline._web_session import Fed
from edgepeft.validate import validate
from edgepeft.validate.probe import bundle_probe

ADAPTERS = ("plain", "head", "dora")


@pytest.fixture(scope="module")
def halved(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("fp16") / "b"))
    quantize(own, "fp16")
    return own


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with two adapters and one before the sequence, in fp32, fp16, q4 and q4f16."""
    folder = tmp_path_factory.mktemp("causal")
    made = build_causal_bundle(folder)
    add(made, "prefix", save_virtual(folder / "prefix", folder / "model", "prefix"))
    quantize(made, "fp16")
    quantize(made, "q4", method="rtn")
    quantize(made, "q4f16")
    return made


def test_what_is_written(halved: Path, bundle: Path) -> None:
    before, after = read_bundle(bundle), read_bundle(halved)
    after.verify()
    entry = after.manifest.variants["fp16"]
    assert (entry.file, entry.data) == ("onnx/model_fp16.onnx", ("onnx/model_fp16.onnx_data",))
    assert (entry.half, entry.cache_dtype) == (True, None)
    assert entry.quantized_share == 1
    assert after.manifest.adapters == before.manifest.adapters
    assert after.manifest.slots == before.manifest.slots
    graph = ir.load(halved / entry.file).graph
    for name in after.manifest.slots.tensors():
        assert graph.initializers[name].dtype == ir.DataType.FLOAT
        assert {user.op_type for user, _ in graph.initializers[name].uses()} == {"Cast"}
    assert {value.dtype for value in graph.outputs} == {ir.DataType.FLOAT}
    wide = [v for n, v in graph.initializers.items() if v.dtype == ir.DataType.FLOAT and not v.is_graph_input()]
    assert all(value.const_value is not None and value.const_value.size <= 1024 for value in wide)
    sizes = [after.manifest.files[after.manifest.variants[name].data[0]].bytes for name in ("fp32", "fp16")]
    assert sizes[1] < 0.55 * sizes[0]
    told = after.manifest.provenance["calibration"]["fp16"]
    assert set(told["texts"]) == {"*", *ADAPTERS}, "the shipped text is run where no other is given"
    assert told["half"]["margin"] == 4
    assert 0 < told["half"]["emulated_difference"] < 2e-2  # 11 bits, two layers


def test_base_and_adapters_compute_the_same(halved: Path, bases: Bases) -> None:
    """Reference: fp32. Logits of magnitude 1 through two layers of 11 bits: 1e-2, where adapters differ by 0.1 and more."""
    full, half = runtime.open(halved), runtime.open(halved, variant="fp16")
    for inputs in ragged(bases("bert")):
        before = half.base.forward(inputs)
        for name in (None, *ADAPTERS):
            found, expected = (each.adapter(name).forward(inputs)["logits"] for each in (half, full))
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() < 1e-2 * max(1, np.abs(expected).max())
        assert all_equal(half.base.forward(inputs), before)
    rows = ["plain", None, "plain"]
    inputs = ragged(bases("bert"))[1]
    mixed = half.forward(inputs, adapters=rows)["logits"]
    alone = [half.adapter(name).forward(inputs)["logits"][row] for row, name in enumerate(rows)]
    assert np.abs(mixed - np.stack(alone)).max() < 1e-2


def test_validate_looks_at_it(halved: Path) -> None:
    rows = Examples(texts=("a good film", "the plot was bad", "very poor"), labels=("a", "b", "a"), source="rows.csv")
    result = validate(halved, reference=False, variants=["fp32", "fp16"], data={"head": rows})
    assert {row.variant for row in result.accuracy} == {"fp32", "fp16"}
    assert not result.problems
    assert result.base_restored is True


def test_a_language_model_keeps_its_cache_in_halves(causal: Path) -> None:
    bundle = read_bundle(causal)
    bundle.verify()
    for name in ("fp16", "q4f16"):
        entry = bundle.manifest.variants[name]
        assert (entry.half, entry.cache_dtype) == (True, "float16")
        graph = ir.load(causal / entry.file).graph
        assert {v.dtype for v in graph.inputs if (v.name or "").startswith("past")} == {ir.DataType.FLOAT16}
        outputs = {v.name: v.dtype for v in graph.outputs}
        assert outputs.pop("logits") == ir.DataType.FLOAT
        assert set(outputs.values()) == {ir.DataType.FLOAT16}
        half = bundle.manifest.provenance["calibration"][name]["half"]
        assert half["islands"] <= 0.1 * half["nodes"]
    config = json.loads((causal / "config.json").read_text(encoding="utf-8"))["transformers.js_config"]
    assert config["kv_cache_dtype"] == {"fp16": "float16", "q4f16": "float16"}
    assert config["dtype"] == "q4", "halves are for those who ask for them"
    assert (
        json.loads((causal / "genai_config.json").read_text())["model"]["decoder"]["filename"] == "onnx/model_q4.onnx"
    )


@pytest.mark.parametrize(("variant", "of"), [("fp16", "fp32"), ("q4f16", "q4")])
def test_it_writes_what_the_variant_writes_that_it_halves(causal: Path, variant: str, of: str) -> None:
    """Reference: the logits of the float32 one along its own greedy tokens; the cache goes through float16 between them."""
    half, whole = runtime.open(causal, variant=variant), runtime.open(causal, variant=of)
    for adapter in (None, "wide", "narrow", "prefix"):
        answers = [
            model.adapter(adapter).generate("the film was", chat=False, max_new_tokens=12) for model in (half, whole)
        ]
        assert len(answers[0].tokens) == len(answers[1].tokens)
        steps = [model.adapter(adapter).decoder(1, 40) for model in (half, whole)]
        tokens = list(np.random.default_rng(0).integers(3, 200, 9))
        found, expected = (decoder.prefill([tokens]).copy() for decoder in steps)
        for token in answers[1].tokens[:8]:
            # q4's kernels round activations to 8 bits, in another place where they come as float16.
            bound = 5e-2 if of == "fp32" else 0.2
            assert np.square(found - expected).mean() < bound**2 * np.square(expected).mean()
            found, expected = (decoder.step([token]).copy() for decoder in steps)


def test_batches_and_conversations_run(causal: Path) -> None:
    model = runtime.open(causal, variant="fp16")
    alone = [
        model.generate(text, chat=False, max_new_tokens=6).tokens for text in ("the film", "a very long end of it")
    ]
    together = model.generate(["the film", "a very long end of it"], chat=False, max_new_tokens=6)
    assert [len(answer.tokens) for answer in together] == [len(tokens) for tokens in alone]
    talk = model.conversation()
    assert talk.say("hello", max_new_tokens=4).tokens
    assert talk.say("again", max_new_tokens=4).tokens
    inputs = {
        "input_ids": np.array([[3, 4]]), "attention_mask": np.ones((1, 2), np.int64), "position_ids": np.array([[0, 1]]),
        **{v.name: np.zeros((1, 2, 0, 16), np.float32) for v in model.manifest.inputs if v.name.startswith("past")},
    }  # fmt: skip
    inputs = {name: array for name, array in inputs.items() if name in {v.name for v in model.manifest.inputs}}
    found = model.forward(inputs)
    assert found["present.0.key"].dtype == np.float16
    with pytest.raises(InputError, match=r"past_key_values\.0\.key is float64"):
        model.forward({**inputs, "past_key_values.0.key": inputs["past_key_values.0.key"].astype(np.float64)})


def test_graphs_with_plain_slots_take_adapters_in_float16(causal: Path, halved: Path, tmp_path: Path) -> None:
    """Reference: the graph with a Cast behind each slot. ONNX Runtime's CPU leaves it out, so a factor is rounded in one only."""
    for made, variant in ((causal, "q4f16"), (halved, "fp16")):
        own = Path(shutil.copytree(made, tmp_path / variant))
        bundle = write_input_style(own, variant)
        assert bundle.manifest.variants[variant].input_unpacked is False
        graph = ir.load(own / (bundle.manifest.variants[variant].input_file or "")).graph
        slots = [value for value in graph.inputs if value.name in bundle.manifest.slots.tensors()]
        assert {value.dtype for value in slots} == {ir.DataType.FLOAT16}
        assert not {user.op_type for value in slots for user, _ in value.uses()} & {"Cast"}
        probe = bundle_probe(bundle).brief()
        fed, model = Fed(bundle, variant), runtime.open(own, variant=variant)
        base = probe.run(fed.use(None))
        assert probe.difference(base, probe.run(model.base)) < 5e-2
        for name in list(bundle.manifest.slot_adapters)[:1]:
            mine, theirs = probe.run(fed.use(name)), probe.run(model.adapter(name))
            assert probe.difference(mine, theirs) < 5e-2 < probe.difference(mine, base)


def test_q4f16_makes_its_own_q4_where_there_is_none(tmp_path: Path) -> None:
    own = build_causal_bundle(tmp_path)
    done = quantize(own, "q4f16", method="rtn")
    assert set(done.bundle.manifest.variants) == {"fp32", "q4f16"}
    assert not list((own / "onnx").glob("*q4.onnx*"))
    assert "round to nearest" in done.bundle.manifest.variants["q4f16"].recipe


def test_q4f16_needs_no_fp32_beside_q4(causal: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(causal, tmp_path / "own"))
    for name in ("q4f16", "fp16", "fp32"):
        remove(own, variant=name)
    done = quantize(own, "q4f16")
    assert set(done.bundle.manifest.variants) == {"q4", "q4f16"}
    assert done.bytes_after < done.bytes_before
    assert runtime.open(own, variant="q4f16").generate("the film", chat=False, max_new_tokens=2).tokens


def test_options_that_do_not_apply_are_refused(causal: Path, halved: Path) -> None:
    with pytest.raises(InputError, match="fp16 is made of the bundle's fp32 as it is: leave --method out"):
        quantize(halved, "fp16", method="rtn", replace=True)
    with pytest.raises(InputError, match="made of the bundle's q4 as it is: leave --head-bits out, or make q4 again"):
        quantize(causal, "q4f16", head_bits=8, replace=True)


def test_what_half_precision_would_change_is_not_written(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, hashes: Callable[[Path], Any]
) -> None:
    before = hashes(own_bundle)
    monkeypatch.setattr(_halves, "TOLERANCE", 1e-7)
    with pytest.raises(ParityError, match="fp16: with every number rounded to float16 the outputs differ by"):
        quantize(own_bundle, "fp16")
    assert hashes(own_bundle) == before


@pytest.fixture
def hashes() -> Callable[[Path], dict[str, bytes]]:
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_encoder_decoder_in_halves(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Reference: fp32's logits, forced along one answer. The cache between its two graphs stays float32."""
    model = made_once(tmp_path_factory)("T5")
    own = export(model, {}, tmp_path / "b", task=SEQ2SEQ).bundles[0].path
    quantize(own, "fp16")
    bundle = read_bundle(own)
    entry = bundle.manifest.variants["fp16"]
    assert (entry.decoder_file, entry.cache_dtype) == ("onnx/decoder_with_past_model_fp16.onnx", None)
    probe = bundle_probe(bundle)
    found, expected = (probe.run(runtime.open(own, variant=name)) for name in ("fp16", "fp32"))
    assert probe.difference(found, expected) < 2e-2


def test_the_plan_tells_the_size(halved: Path, causal: Path) -> None:
    for folder, variant in ((halved, "fp16"), (causal, "q4f16")):
        plan = plan_quantize(folder, variant, replace=True)
        written = read_bundle(folder)
        size = sum(written.manifest.files[name].bytes for name in written.manifest.variants[variant].data)
        assert plan.files[-1].bytes == pytest.approx(size, rel=0.05)


def test_the_command_says_what_it_did(own_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["quantize", str(own_bundle), "--variant", "fp16"])
    assert result.exit_code == 0, result.output
    assert "nodes with floats" in result.output
    assert "fp16 holds 100.0% of" in result.output


def test_a_variant_that_does_not_fit_its_entry_is_refused(causal: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(causal, tmp_path / "own"))
    text = (own / "edgepeft.json").read_text(encoding="utf-8")
    (own / "edgepeft.json").write_text(
        text.replace('"cache_dtype": "float16"', '"cache_dtype": null'), encoding="utf-8"
    )
    with pytest.raises(BundleError, match=r"past_key_values\.0\.key is tensor\(float16\)"):
        runtime.open(own, variant="q4f16")
