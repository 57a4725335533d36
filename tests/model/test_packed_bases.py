"""Bases that are stored in few bits: MXFP4 is unpacked by transformers, others are refused with the model they come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from causal import save_byte_tokenizer
from conftest import randomize, save_lora
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, Mxfp4Config

from edgepeft import runtime
from edgepeft.adapters.contract import original_of
from edgepeft.errors import AdapterMismatchError, InputError
from edgepeft.pipeline import export, validate

IDS = [1, 7, 30, 44, 90, 12, 5]


@pytest.fixture
def mxfp4(tmp_path: Path) -> Path:
    """A tiny gpt-oss with its experts in MXFP4, as OpenAI published it."""
    folder = tmp_path / "base"
    vocabulary = save_byte_tokenizer(folder)
    config = GptOssConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=128, bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2, sliding_window=16, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, 0)
    model.save_pretrained(folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inner, outer = tensors.pop(name).shape
        shape = (experts, outer, inner // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 124, shape, generator=generator, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_gpt_oss_as_published(mxfp4: Path, tmp_path: Path) -> None:
    unpacked = AutoModelForCausalLM.from_pretrained(mxfp4, quantization_config=Mxfp4Config(dequantize=True)).float()
    unpacked.save_pretrained(tmp_path / "floats")
    adapter = save_lora(
        tmp_path / "a", tmp_path / "floats", task="text-generation", task_type="CAUSAL_LM", target_modules=["q_proj"]
    )
    done = export(mxfp4, {"a": adapter}, tmp_path / "bundle", force=True)
    assert done.parity[0].max_difference <= 1e-4
    peft = PeftModel.from_pretrained(unpacked, adapter).eval()
    with torch.no_grad():
        expected = peft(torch.tensor([IDS])).logits[0, -1].numpy()
    found = runtime.open(tmp_path / "bundle").adapter("a").decoder(1, 16).prefill([IDS])[0]
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
    assert validate(tmp_path / "bundle", adapters={"a": adapter}).passed


def test_other_kinds_are_refused_with_the_original(mxfp4: Path, tmp_path: Path) -> None:
    settings = json.loads((mxfp4 / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    named = tmp_path / "Tiny-unsloth-bnb-4bit"
    mxfp4.rename(named)
    (named / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(InputError, match=r"in 4 bits by bitsandbytes.*quantized from \(\S+/Tiny, by its name\)"):
        export(named, {}, tmp_path / "bundle", task="text-generation")


def test_names_of_quantized_copies() -> None:
    assert original_of("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit") == "unsloth/Llama-3.2-1B-Instruct"
    assert original_of("unsloth/gemma-3-4b-it-bnb-4bit") == "unsloth/gemma-3-4b-it"
    assert original_of("TheBloke/Mistral-7B-GPTQ") == "TheBloke/Mistral-7B"
    assert original_of("Qwen/Qwen2.5-7B-Instruct") is None


def test_an_adapter_of_a_quantized_copy_asks_for_consent(tmp_path: Path) -> None:
    from causal import build_causal

    base = build_causal(tmp_path / "base")
    adapter = save_lora(tmp_path / "a", base, task="text-generation", task_type="CAUSAL_LM", target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "unsloth/tiny-bnb-4bit"
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AdapterMismatchError, match=r"a quantized copy of 'unsloth/tiny'.*--force"):
        export(base, {"a": adapter}, tmp_path / "bundle")
    assert export(base, {"a": adapter}, tmp_path / "bundle", force=True).parity[0].max_difference <= 1e-4
