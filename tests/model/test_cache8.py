"""``quantize --cache int8``: a key/value cache in 8 bits, with adapters on, over the weights of the variant that it is made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from causal import build_causal_bundle, save_virtual
from click.testing import CliRunner

from edgepeft import runtime
from edgepeft.bundle import GraphInput, read_bundle
from edgepeft.cli import main
from edgepeft.errors import InputError, ParityError
from edgepeft.pipeline import _cache, add, quantize, quantize_cache, remove, write_input_style
from edgepeft.quantize.cache8 import MARGIN, Rotation, attention_of, scales_of
from edgepeft.runtime.generation.decoder import Decoder

NAMES = (None, "wide", "narrow")
PROMPTS = ("the film was very good", "a", "the end of the book was not")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with two adapters in fp32 and q4, and both again with a cache in 8 bits."""
    bundle = build_causal_bundle(tmp_path_factory.mktemp("cache8"))
    quantize(bundle, "q4", method="rtn")
    for name in ("fp32", "q4"):
        quantize_cache(bundle, name)
    return bundle


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "own"))


def test_what_is_written(made: Path) -> None:
    bundle = read_bundle(made)
    bundle.verify()
    for source in ("fp32", "q4"):
        entry, before = bundle.manifest.variants[f"{source}_kv8"], bundle.manifest.variants[source]
        assert entry.cache_dtype == "int8"
        assert entry.data == before.data, "the weights are the same file"
        assert entry.quantized_share == before.quantized_share
        graph = ir.load(made / entry.file).graph
        caches = [v for v in (*graph.inputs, *graph.outputs) if (v.name or "").startswith(("past_key", "present."))]
        assert len(caches) == 8
        assert {value.dtype for value in caches} == {ir.DataType.INT8}
        told = bundle.manifest.provenance["calibration"][f"{source}_kv8"]
        assert set(told["texts"]) == {"*", "wide", "narrow"}
        assert set(told["cache_divergence"]) == {"*", "wide", "narrow"}
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))["transformers.js_config"]
    assert "kv_cache_dtype" not in config, "browsers are not given it"
    assert json.loads((made / "genai_config.json").read_text())["model"]["decoder"]["filename"] == "onnx/model_q4.onnx"


def far_in(made: Path, variant: str, name: str | None, ids: list[int]) -> tuple[np.ndarray, int]:
    """Logits behind each token, fed one by one through the cache as generation does, and the cache's bytes."""
    with runtime.open(made, variant=variant, threads=1) as model:
        view = model.base if name is None else model.adapter(name)
        engine = view.engine
        signature = engine.generator.signature
        decoder = Decoder(engine.session, signature, 1, engine.slot_values(view.active), 128)
        logits = [decoder.prefill([ids[:4]])[0].copy()]
        logits += [decoder.step([token])[0].copy() for token in ids[4:]]
        return np.array(logits), sum(array.nbytes for array in decoder._cache.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["fp32", "q4"])
def test_base_and_adapters_write_as_before(made: Path, source: str, name: str | None) -> None:
    """Reference: the same variant with its cache in float32. These random layers choose one token among all by scores of tens, so
    that they make 7 to 11 % of the logits (rms) of 8 bits; the adapters are 107 to 140 % from the base.
    """
    ids = np.random.default_rng(5).integers(3, 290, 100).tolist()
    expected, wide = far_in(made, source, name, ids)
    found, narrow = far_in(made, f"{source}_kv8", name, ids)
    assert narrow * 4 == wide
    assert 0 < rms(found - expected) < 0.25 * rms(expected)


def rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.square(array, dtype=np.float64).mean()))


def prompt_feeds(inputs: Iterable[GraphInput], ids: list[int]) -> dict[str, np.ndarray]:
    """A prompt of one row, behind empty caches."""
    known = {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
    }
    return {
        v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) if v.name.startswith("past") else known[v.name]
        for v in inputs
        if v.name in known or v.name.startswith("past")
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_the_cache_holds(made: Path, name: str | None) -> None:
    """Keys and values of the first layer do not depend on attention: each is the nearest step of its channel's scale."""
    ids = np.random.default_rng(7).integers(3, 290, 60).tolist()
    runs = {}
    for variant in ("fp32", "fp32_kv8"):
        with runtime.open(made, variant=variant, threads=1) as model:
            view = model.base if name is None else model.adapter(name)
            runs[variant] = view.forward(prompt_feeds(model.bundle.manifest.inputs, ids))
    graph = ir.load(made / read_bundle(made).manifest.variants["fp32_kv8"].file).graph
    for side in ("key", "value"):
        output = f"present.0.{side}"
        scale = graph.initializers[f"{output}.scale"].const_value
        assert scale is not None
        steps = runs["fp32"][output] / scale.numpy()
        held = runs["fp32_kv8"][output]
        assert held.dtype == np.int8
        assert np.abs(steps).max() > 60, "the steps are used"
        assert (np.abs(steps) > 127).mean() < 0.02, "and of random tokens little is cut off"
        assert np.abs(held - np.clip(steps, -128, 127)).max() <= 0.5 + 1e-3


def test_rows_together_are_rows_alone(made: Path) -> None:
    """Batches, rows with adapters of their own and a conversation go through the same cache."""
    with runtime.open(made, variant="q4_kv8", threads=1) as model:
        alone = [model.generate(text, max_new_tokens=8, chat=False).text for text in PROMPTS]
        together = model.generate(list(PROMPTS), max_new_tokens=8, chat=False)
        assert [each.text for each in together] == alone
        rows = model.generate(list(PROMPTS), max_new_tokens=8, chat=False, adapters=["wide", None, "narrow"])
        assert rows[1].text == alone[1]
        view = model.adapter("wide")
        assert rows[0].text == view.generate(PROMPTS[0], max_new_tokens=8, chat=False).text
        assert [model.generate(text, max_new_tokens=8, chat=False).text for text in PROMPTS] == alone


def test_arrays_of_a_run_go_into_the_next(made: Path) -> None:
    """Floats of earlier tokens are refused: which scale rounds them, only the graph knows."""
    with runtime.open(made, variant="q4_kv8", threads=1) as model:
        inputs = prompt_feeds(model.bundle.manifest.inputs, [5, 6, 7])
        first = model.base.forward(inputs)
        pasts = {n.replace("present.", "past_key_values."): a for n, a in first.items() if n.startswith("present.")}
        assert {array.dtype for array in pasts.values()} == {np.dtype(np.int8)}
        step = {
            "input_ids": np.array([[8]]),
            "attention_mask": np.ones((1, 4), np.int64),
            "position_ids": np.array([[3]]),
        }
        step = {name: array for name, array in step.items() if name in inputs}
        assert np.isfinite(model.base.forward({**step, **pasts})["logits"]).all()
        wide = {name: array.astype(np.float32) for name, array in pasts.items()}
        with pytest.raises(InputError, match=r"holds 3 tokens in float32, and this variant keeps its cache in int8"):
            model.base.forward({**step, **wide})


def test_it_can_be_removed_and_made_again(own: Path) -> None:
    before = (own / "onnx/model_q4.onnx_data").read_bytes()
    with pytest.raises(InputError, match="already has a variant 'q4_kv8'"):
        quantize_cache(own, "q4")
    assert quantize_cache(own, "q4", replace=True).variant == "q4_kv8"
    with pytest.raises(InputError, match=r"q4_kv8 runs over the weights of q4.*Remove it first"):
        quantize(own, "q4", method="rtn", replace=True)
    gone = remove(own, variant="q4_kv8")
    assert gone.files == ("onnx/model_q4_kv8.onnx",)
    assert (own / "onnx/model_q4.onnx_data").read_bytes() == before
    read_bundle(own).verify()
    assert runtime.open(own, variant="q4").generate("a", max_new_tokens=2, chat=False).text is not None
    quantize(own, "q4", method="rtn", replace=True)


def test_an_adapter_that_comes_later_is_told(own: Path, made: Path) -> None:
    said: list[str] = []
    add(own, "late", made.parent / "wide", announce=said.append)
    assert any(line.startswith("q4_kv8 was measured without late") for line in said), said


def test_states_before_the_sequence(own: Path, made: Path, tmp_path: Path) -> None:
    """They are floats. The other variants take the adapter; this one says why not, when it is used or made."""
    add(own, "prefix", save_virtual(tmp_path / "prefix", made.parent / "model", "prefix"))
    with runtime.open(own, variant="q4_kv8") as model:
        with pytest.raises(InputError, match=r"'prefix' puts 5 states in floats before the sequence, and q4_kv8 keeps"):
            model.adapter("prefix")
        assert model.adapter("wide").generate("a", max_new_tokens=2, chat=False).text is not None
    assert (
        runtime.open(own, variant="q4").adapter("prefix").generate("a", max_new_tokens=2, chat=False).text is not None
    )
    with pytest.raises(InputError, match=r"adapter 'prefix' .* puts states in floats before the sequence"):
        quantize_cache(own, "q4", replace=True)


def test_what_has_no_such_cache(own: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is for text-classification: only a language model"):
        quantize_cache(bundle, "fp32")
    with pytest.raises(InputError, match=r"the cache of q4_kv8 .* is int8 already"):
        quantize_cache(own, "q4_kv8")
    with pytest.raises(InputError, match="q4_kv8 keeps its cache in int8, which browsers are not given"):
        write_input_style(own, "q4_kv8")
    made = write_input_style(own).manifest.variants
    assert {name for name, each in made.items() if each.input_file} == {"fp32", "q4"}
    past = ir.Value(
        name="past_key_values.0.key", shape=ir.Shape([1, 2, "past", 4]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    grown = ir.node("Concat", [past, past], {"axis": 2})
    with pytest.raises(InputError, match=r"cache past_key_values\.0\.key is not kept by GroupQueryAttention"):
        attention_of(ir.Graph([past], grown.outputs, nodes=[grown], opset_imports={"": 21}), tmp_path / "traced.onnx")


def test_a_cache_that_8_bits_do_not_hold_is_not_written(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales a hundredth of what they should be cut every number off: the comparison refuses that, and nothing is written."""
    remove(own, variant="q4_kv8")
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    right = _cache._measured
    monkeypatch.setattr(_cache, "_measured", lambda *args: {name: size / 100 for name, size in right(*args).items()})
    with pytest.raises(ParityError, match=r"q4_kv8, .*diverge by .* nats from q4"):
        quantize_cache(own, "q4")
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


def test_keys_are_held_at_any_position() -> None:
    """A pair of channels that is turned has its whole length in either of them somewhere; channels beyond are as they are."""
    keys = np.array([[3.0, 0.0, 4.0, 1.0, -7.0]], np.float32)
    assert Rotation(4, interleaved=False).turned_any_way(keys).tolist() == [[5, 1, 5, 1, 7]]
    assert Rotation(4, interleaved=True).turned_any_way(keys).tolist() == [
        [3, 3, pytest.approx(17**0.5), pytest.approx(17**0.5), 7]
    ]
    scales = scales_of(np.array([[1.0, 0.0]]))
    assert scales.shape == (1, 1, 1, 2)
    assert scales[0, 0, 0, 0] == pytest.approx(MARGIN / 127)
    assert scales[0, 0, 0, 1] > 0, "a channel of zeros must not divide by zero"


def test_the_command(own: Path) -> None:
    remove(own, variant="fp32_kv8")
    result = CliRunner().invoke(main, ["quantize", str(own), "--variant", "fp32", "--cache", "int8", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["variant"], told["token_bytes_before"], told["token_bytes_after"]) == ("fp32_kv8", 512, 128)
    assert [each["adapter"] for each in told["quality"]] == [None, "wide", "narrow"]
    result = CliRunner().invoke(main, ["quantize", str(own), "--variant", "q4", "--cache", "int8", "--replace"])
    assert result.exit_code == 0, result.output
    assert "Against q4, on texts kept apart" in result.stdout
    wrong = CliRunner().invoke(main, ["quantize", str(own), "--variant", "q4", "--cache", "int8", "--heal", "4"])
    assert wrong.exit_code == 2
    assert "--cache is about the cache alone" in wrong.output
