"""onnxruntime-genai opens a bundle as it is and generates the same tokens, with each adapter by its own API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from causal import ADAPTERS, CONTEXT, OTHERS, build_causal, build_causal_bundle, build_other

from edgepeft import runtime
from edgepeft.pipeline import add_slots, capture, quantize, write_bundle

genai = pytest.importorskip("onnxruntime_genai")

PROMPT = "the film was"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("causal"))


class Genai:
    """A bundle in onnxruntime-genai, greedy."""

    def __init__(self, bundle: Path) -> None:
        self.model = genai.Model(str(bundle))
        self.tokenizer = genai.Tokenizer(self.model)
        self.adapters = genai.Adapters(self.model)
        for path in sorted(bundle.glob("adapters/*.onnx_adapter")):
            self.adapters.load(str(path), path.stem)

    def generate(self, prompt: list[int], count: int, adapter: str | None = None) -> list[int]:
        params = genai.GeneratorParams(self.model)
        params.set_search_options(max_length=len(prompt) + count, do_sample=False)
        generator = genai.Generator(self.model, params)
        if adapter is not None:
            generator.set_active_adapter(self.adapters, adapter)
        generator.append_tokens(prompt)
        found: list[int] = []
        while not generator.is_done() and len(found) < count:
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        return found


@pytest.fixture(scope="module")
def theirs(bundle: Path) -> Genai:
    return Genai(bundle)


@pytest.mark.parametrize("adapter", [None, *ADAPTERS])
def test_the_same_greedy_tokens(bundle: Path, theirs: Genai, adapter: str | None) -> None:
    ours = runtime.open(bundle, threads=1).use(adapter)
    found = ours.generate(PROMPT, chat=False, max_new_tokens=40)
    prompt = ours.generator.tokens.encode(PROMPT, special=True)
    assert theirs.generate(prompt, 40, adapter) == list(found.tokens)
    assert theirs.generate(prompt, 40) == list(ours.use(None).generate(PROMPT, chat=False, max_new_tokens=40).tokens)


def test_their_tokenizer_reads_ours(bundle: Path, theirs: Genai) -> None:
    ours = runtime.open(bundle).generator
    for text in (PROMPT, "naïve 日本 café", "<|im_start|>user\nthe end<|im_end|>\n"):
        assert list(theirs.tokenizer.encode(text)) == ours.tokens.encode(text, special=True)
    messages = [{"role": "user", "content": "the film?"}]
    rendered = theirs.tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
    assert ours.template is not None
    assert rendered == ours.template.render(messages)


def test_what_the_configuration_says(bundle: Path) -> None:
    found = json.loads((bundle / "genai_config.json").read_text(encoding="utf-8"))
    model, search = found["model"], found["search"]
    assert model["decoder"]["filename"] == "onnx/model.onnx"
    assert model["decoder"]["inputs"].keys() == {"input_ids", "attention_mask", "past_key_names", "past_value_names"}
    assert {k: model["decoder"][k] for k in ("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_size")} == {
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_size": 16,
    }  # fmt: skip
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, 2, 2)
    assert model["context_length"] == search["max_length"] == CONTEXT
    assert search["past_present_share_buffer"] is True


def test_a_quantized_variant_takes_over(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "b"))
    quantize(copy, "q4")
    found = json.loads((copy / "genai_config.json").read_text(encoding="utf-8"))
    assert found["model"]["decoder"]["filename"] == "onnx/model_q4.onnx"
    theirs = Genai(copy)
    for adapter in (None, *ADAPTERS):
        ours = runtime.open(copy, variant="q4", threads=1).use(adapter)
        prompt = ours.generator.tokens.encode(PROMPT, special=True)
        assert theirs.generate(prompt, 30, adapter) == list(ours.generate(PROMPT, chat=False, max_new_tokens=30).tokens)


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures(architecture: str, tmp_path: Path) -> None:
    """Graphs with position_ids, or whose cache grows by a step: the same in both."""
    base = capture(build_other(tmp_path / "model", architecture), task="text-generation")
    bundle = write_bundle(tmp_path / "bundle", base, add_slots(base, [], reserve="all-linear"), []).path
    ours: Any = runtime.open(bundle, threads=1)
    prompt = ours.generator.tokens.encode(PROMPT, special=True)
    found = list(ours.generate(PROMPT, chat=False, max_new_tokens=25).tokens)
    assert Genai(bundle).generate(prompt, 25) == found


def test_only_causal_models_have_one(tmp_path: Path, bases: Any) -> None:
    base = bases("bert")
    bundle = write_bundle(tmp_path / "b", base, add_slots(base, [], reserve="all-linear"), [])
    assert "genai_config.json" not in bundle.manifest.files


def test_a_model_without_special_tokens(tmp_path: Path) -> None:
    """Nothing is written for tokens that the model does not have."""
    folder = build_causal(tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({k: v for k, v in config.items() if k != "bos_token_id"}), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "bos_token_id": None}), encoding="utf-8")
    base = capture(folder, task="text-generation")
    bundle = write_bundle(tmp_path / "b", base, add_slots(base, [], reserve="all-linear"), []).path
    assert "bos_token_id" not in json.loads((bundle / "genai_config.json").read_text(encoding="utf-8"))["model"]
    assert len(Genai(bundle).generate([5, 6], 5)) == 5
