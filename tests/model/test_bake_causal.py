"""Baked language models as bundles: they generate what PEFT generates, in edgepeft's runtime and in onnxruntime-genai.

Trained numbers are random. Greedy tokens are compared exactly, logits at export to 1e-4 of the largest.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from causal import CONTEXT, build_causal, build_other
from click.testing import CliRunner
from test_prefix import PROMPTS, RAW, greedy, peft_model, save_virtual, tokens

from edgepeft import runtime
from edgepeft.cli import main
from edgepeft.errors import InputError
from edgepeft.pipeline import add, export, quantize

OPTIONS: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "LILY": {"r": 4, "target_modules": ["q_proj", "down_proj"]},
    "SHADOW": {},
}


def save(out: Path, model: Path, peft_type: str, **more: Any) -> Path:
    """A checkpoint as PEFT saves it, every trained number moved."""
    import torch
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        config = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](task_type="CAUSAL_LM", **{**OPTIONS.get(peft_type, {}), **more})
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        with torch.no_grad():
            for _, parameter in sorted(wrapped.named_parameters()):
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.5)
        wrapped.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal(tmp_path_factory.mktemp("causal") / "model")


def encoded(model: Path) -> list[list[int]]:
    """``PROMPTS`` as tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [list(tokenizer(prompt).input_ids) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    return encoded(model)


@pytest.fixture(scope="module")
def plain(model: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What the base goes on with."""
    module = peft_model(model, None)
    return [greedy(module, prompt, 20) for prompt in prompts]


@pytest.fixture(scope="module")
def adapted(model: Path) -> Path:
    """The folder of a LLaMA-Adapter checkpoint ``a`` and of its bundle ``bundle``."""
    source = save(model.parent / "adapted" / "a", model, "ADAPTION_PROMPT")
    done = export(model, {"a": source}, source.parent / "bundle", mode="bake")
    assert done.parity[0].max_difference <= 1e-4
    return source.parent


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_llama_adapter_over_the_other_models_that_peft_offers_it_for(architecture: str, tmp_path: Path) -> None:
    import torch

    source = build_other(tmp_path / "model", architecture)
    checkpoint = save(tmp_path / "a", source, "ADAPTION_PROMPT")
    done = export(source, {"a": checkpoint}, tmp_path / "b", mode="bake")
    assert done.parity[0].max_difference <= 1e-4
    module, plain = peft_model(source, checkpoint), peft_model(source, None)
    expected = [greedy(module, prompt, 20) for prompt in encoded(source)]
    with torch.no_grad():
        ids = torch.tensor(encoded(source)[:1])
        changed = float((module(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max())
    assert changed > 0.01, "the adapter must change the output, if not the likeliest tokens"
    assert tokens(runtime.open(tmp_path / "b", threads=1).generate(PROMPTS, **RAW)) == expected


@pytest.mark.slow
def test_a_lora_that_repeats_layers_is_baked_too(model: Path, plain: list[list[int]], tmp_path: Path) -> None:
    """PEFT's own merge of it is wrong (by half of the largest logit); unmerged it runs, with a cache for each repeat."""
    checkpoint = save(tmp_path / "a", model, "LORA", r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]])
    export(model, {"a": checkpoint}, tmp_path / "b", mode="bake")
    expected = [greedy(peft_model(model, checkpoint), prompt, 20) for prompt in encoded(model)]
    assert expected != plain
    own = runtime.open(tmp_path / "b", threads=1)
    assert "past_key_values.2.key" in {value.name for value in own.manifest.inputs}
    assert tokens(own.generate(PROMPTS, **RAW)) == expected


def test_llama_adapter_generates_as_in_peft(
    adapted: Path, model: Path, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    module = peft_model(model, adapted / "a")
    expected = [greedy(module, prompt, 20) for prompt in prompts]
    assert expected != plain, "the adapter must change what is generated, or the test shows nothing"
    own = runtime.open(adapted / "bundle", threads=1)
    assert (own.manifest.mode, own.manifest.merged, own.manifest.base.captured_by) == ("bake", "a", "baked")
    assert tokens(own.generate(PROMPTS, **RAW)) == expected
    assert [list(own.generate(prompt, **RAW).tokens) for prompt in PROMPTS] == expected
    names = {value.name for value in own.manifest.inputs}
    assert {"input_ids", "attention_mask", "past_key_values.1.value", "logits_from"} <= names
    with pytest.raises(InputError, match="has no slots"):
        add(adapted / "bundle", "b", adapted / "a")


def test_its_bundle_in_genai_in_4_bits_and_on_the_command_line(adapted: Path, prompts: list[list[int]]) -> None:
    own = runtime.open(adapted / "bundle", threads=1)
    expected = tokens(own.generate(PROMPTS[:1], **RAW))[0]
    said = CliRunner().invoke(main, ["run", str(adapted / "bundle"), "--raw", "--prompt", PROMPTS[0], "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)[0]["tokens"][:20] == expected
    checked = CliRunner().invoke(
        main, ["validate", str(adapted / "bundle"), "--adapter", f"a={adapted / 'a'}", "--json"]
    )
    assert checked.exit_code == 0, checked.output
    genai = pytest.importorskip("onnxruntime_genai")
    opened = genai.Model(str(adapted / "bundle"))
    params = genai.GeneratorParams(opened)
    params.set_search_options(max_length=len(prompts[0]) + 20, do_sample=False)
    generator = genai.Generator(opened, params)
    generator.append_tokens(prompts[0])
    found: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found == expected
    assert quantize(adapted / "bundle", "q4").quantized.share > 0.5


def test_shadow_keeps_the_cache_of_its_second_network(
    model: Path, prompts: list[list[int]], plain: list[list[int]], tmp_path: Path
) -> None:
    source = save(tmp_path / "a", model, "SHADOW")
    export(model, {"a": source}, tmp_path / "b", mode="bake")
    module = peft_model(model, source)
    expected = [greedy(module, prompt, 20) for prompt in prompts]
    assert expected != plain
    own = runtime.open(tmp_path / "b", threads=1)
    assert tokens(own.generate(PROMPTS, **RAW)) == expected
    assert "past_key_values.2.key" in {value.name for value in own.manifest.inputs}  # the base has two layers


def test_lily_goes_on_call_by_call(
    model: Path, prompts: list[list[int]], plain: list[list[int]], tmp_path: Path
) -> None:
    """Its router averages over a call, so the reference is PEFT's own generation with a cache, one prompt at a time."""
    import torch

    source = save(tmp_path / "a", model, "LILY")
    export(model, {"a": source}, tmp_path / "b", mode="bake", max_length=64)
    module = peft_model(model, source)
    own = runtime.open(tmp_path / "b", threads=1)
    assert own.manifest.max_length == 64
    expected = []
    for ids in prompts:
        tensor = torch.tensor([ids])
        found = module.generate(
            input_ids=tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=20, do_sample=False
        )
        expected.append([int(token) for token in found[0, len(ids) :]])
    assert expected != plain
    assert [list(own.generate(prompt, **RAW).tokens) for prompt in PROMPTS] == expected


def test_states_before_the_sequence_take_places_of_the_context(
    model: Path, prompts: list[list[int]], plain: list[list[int]], tmp_path: Path
) -> None:
    source = save_virtual(tmp_path / "prompt", model, "prompt")
    export(model, {"a": source}, tmp_path / "b", mode="bake")
    module = peft_model(model, source)
    expected = [greedy(module, prompt, 20) for prompt in prompts]
    assert expected != plain
    own = runtime.open(tmp_path / "b", threads=1)
    assert own.manifest.max_length == CONTEXT - 7
    assert tokens(own.generate(PROMPTS, **RAW)) == expected
    assert own.generate("a", chat=False, max_new_tokens=CONTEXT - 8).prompt_tokens == 1
    with pytest.raises(InputError, match=rf"context is {CONTEXT - 7} tokens"):
        own.generate("a", chat=False, max_new_tokens=CONTEXT - 7)
