"""The converted language models: the numbers of the GGUF, a tokenizer that agrees, sensible text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.demo import assets

pytestmark = [pytest.mark.real, pytest.mark.slow]


def load(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def perplexity(model: Any, tokenizer: Any) -> float:
    import torch

    text = (assets.austen() / "emma.txt").read_text(encoding="utf-8")[2000:12000]
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :1024]
    with torch.no_grad():
        return float(torch.exp(model(ids, labels=ids).loss))


def test_smollm2() -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from tokenizers import Tokenizer

    folder = assets.smollm2()
    model, tokenizer = load(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert (folder / "model.safetensors").stat().st_size < 134_515_008 * 4 + 100_000  # the tied head is stored once

    # The reference is the gguf package's own de-quantization; both follow the format's definition in float32.
    reader = GGUFReader(assets.fetch("smollm2-gguf") / "SmolLM2-135M-Instruct.Q4_1.gguf")
    for tensor in reader.tensors:
        if tensor.name in {"blk.29.ffn_up.weight", "token_embd.weight"}:
            ours = model.model.layers[29].mlp.up_proj.weight if "ffn" in tensor.name else model.lm_head.weight
            reference = dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_allclose(ours.detach().numpy(), reference, rtol=0, atol=1e-6)

    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Ids as the published tokenizer gives them: digits one by one, and the blanks before them together.
    for text, ids in (
        ("Hello world", [19556, 905]),
        ("x  123", [104, 256, 33, 34, 35]),
        ("<|im_start|>user\nhi<|im_end|>", [1, 4093, 198, 6004, 2]),
    ):
        assert tokenizer(text)["input_ids"] == raw.encode(text).ids == ids
        assert tokenizer.decode(ids) == text
    # 37.1 was measured; a wrong rotation of q and k, or a wrong epsilon, gives hundreds.
    assert perplexity(model, tokenizer) < 42

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])


def test_gemma3() -> None:
    folder = assets.gemma3_270m()
    model, tokenizer = load(folder)
    assert model.config.layer_types.count("full_attention") == 3
    assert model.config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000
    assert tokenizer("Hello world")["input_ids"] == [2, 9259, 1902]
    text = "  two\n\nlines, naïve 北京 🙂 2024"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == "<bos>" + text
    assert tokenizer("<start_of_turn>user")["input_ids"] == [2, 105, 2364]
    assert perplexity(model, tokenizer) < 42  # 36.5 was measured
    assert (folder / "GEMMA_TERMS.html").is_file()
