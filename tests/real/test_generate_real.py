"""SmolLM2-135M: 64 greedy tokens as PyTorch and PEFT choose them, base and adapters, here and in onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import save_lora

from edgepeft import runtime
from edgepeft.demo import assets

pytestmark = [pytest.mark.real, pytest.mark.slow]

LORA: dict[str, dict[str, Any]] = {
    "wide": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "seed": 1, "scale": 0.03},
    "narrow": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "seed": 2, "scale": 0.06},
}
PROMPTS = ["What is the capital of France?", "Write a short poem about the sea.", "How do I reset my router?"]


def export_smollm2(folder: Path) -> Path:
    """``folder/<adapter>`` of random weights and ``folder/bundle`` of them; ``folder``."""
    from edgepeft.pipeline import export

    model = assets.smollm2()
    for name, options in LORA.items():
        save_lora(folder / name, model, task="text-generation", task_type="CAUSAL_LM", **options)
    export(model, adapters={name: folder / name for name in LORA}, out=folder / "bundle", task="text-generation")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_smollm2(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def greedy(folder: Path) -> Callable[[str | None, str], list[int]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = assets.smollm2()
    tokenizer = AutoTokenizer.from_pretrained(source)

    def get(adapter: str | None, prompt: str) -> list[int]:
        model = AutoModelForCausalLM.from_pretrained(source)
        model = (model if adapter is None else PeftModel.from_pretrained(model, folder / adapter)).eval()
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        inputs = torch.tensor([ids])
        with torch.no_grad():
            found = model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=64, do_sample=False
            )
        return [int(token) for token in found[0, len(ids) :]]

    return get


@pytest.mark.parametrize("adapter", [None, *LORA])
def test_64_greedy_tokens_are_pefts(folder: Path, greedy: Callable[..., list[int]], adapter: str | None) -> None:
    model = runtime.open(folder / "bundle", threads=1).use(adapter)
    wanted = [greedy(adapter, prompt) for prompt in PROMPTS]
    assert max(map(len, wanted)) == 64
    assert [list(model.generate(prompt, max_new_tokens=64).tokens) for prompt in PROMPTS] == wanted
    # All of them in one ragged batch.
    assert [list(found.tokens) for found in model.generate(PROMPTS, max_new_tokens=64)] == wanted


def test_a_switch_between_requests(folder: Path) -> None:
    """It costs a prefill, and leaves nothing behind."""
    model = runtime.open(folder / "bundle", threads=1)
    chat = model.conversation()
    alone = {name: model.use(name).generate(PROMPTS[0], max_new_tokens=16).tokens for name in (None, *LORA)}
    assert len(set(alone.values())) == 3
    for name in (None, "wide", "narrow", "wide", None):
        found = model.use(name) and chat.generate(PROMPTS[0], max_new_tokens=16)
        assert (found.tokens, found.reused_tokens) == (alone[name], 0)
    assert chat.generate(PROMPTS[0], max_new_tokens=16).reused_tokens == found.prompt_tokens - 1


def test_onnxruntime_genai_opens_it(folder: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    ours = runtime.open(folder / "bundle", threads=1)
    theirs = genai.Model(str(folder / "bundle"))
    adapters = genai.Adapters(theirs)
    for name in LORA:
        adapters.load(str(folder / "bundle" / "adapters" / f"{name}.onnx_adapter"), name)
    for name in (None, *LORA):
        found = ours.use(name).generate(PROMPTS[1], max_new_tokens=64)
        prompt = ours.generator.encode([{"role": "user", "content": PROMPTS[1]}], runtime.generation.Options())
        params = genai.GeneratorParams(theirs)
        params.set_search_options(max_length=len(prompt) + 64, do_sample=False)
        generator = genai.Generator(theirs, params)
        if name is not None:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(prompt)
        tokens: list[int] = []
        while not generator.is_done() and len(tokens) < 64:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        assert tokens == list(found.tokens)
