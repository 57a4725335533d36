"""Adapters of experts as modules (transformers 4) over experts in one parameter (transformers 5). Reference: changed weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal import save_byte_tokenizer
from conftest import randomize
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from edgepeft import runtime
from edgepeft.errors import AdapterError, UnsupportedAdapterError
from edgepeft.pipeline import export

EXPERTS, HIDDEN, INNER, IDS = 3, 64, 24, [5, 9, 30, 44, 90, 12]
SIZES = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
KINDS: dict[str, tuple[type, dict[str, Any], str, tuple[str, str, str]]] = {
    "qwen3_moe": (
        Qwen3MoeConfig,
        {"head_dim": 16, "num_experts": EXPERTS, "moe_intermediate_size": INNER, "intermediate_size": 96},
        "mlp.experts",
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "mixtral": (
        MixtralConfig,
        {"num_local_experts": EXPERTS, "intermediate_size": INNER},
        "block_sparse_moe.experts",
        ("w1", "w3", "w2"),
    ),
}


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A base, an adapter with the old names and ranks of its own by expert's leaf, and the changed model's logits."""
    kind, sizes, path, leaves = KINDS[request.param]
    vocabulary = save_byte_tokenizer(tmp_path / "base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(kind(vocab_size=vocabulary, **SIZES, **sizes)).eval()
    randomize(model, 0, scale=0.2)
    model.save_pretrained(tmp_path / "base")
    generator = torch.Generator().manual_seed(3)
    state: dict[str, torch.Tensor] = {}

    def pair(name: str, out: int, into: int, rank: int) -> torch.Tensor:
        a, b = torch.randn(rank, into, generator=generator) * 0.2, torch.randn(out, rank, generator=generator) * 0.2
        state[f"base_model.model.{name}.lora_A.weight"], state[f"base_model.model.{name}.lora_B.weight"] = a, b
        return (8 / rank) * b @ a

    with torch.no_grad():
        for layer in range(2):
            block = model.model.layers[layer]
            block.self_attn.q_proj.weight += pair(f"model.layers.{layer}.self_attn.q_proj", 64, HIDDEN, 4)
            for expert in range(EXPERTS):
                site = f"model.layers.{layer}.{path}.{expert}"
                block.mlp.experts.gate_up_proj[expert, :INNER] += pair(f"{site}.{leaves[0]}", INNER, HIDDEN, 4)
                block.mlp.experts.gate_up_proj[expert, INNER:] += pair(f"{site}.{leaves[1]}", INNER, HIDDEN, 4)
                block.mlp.experts.down_proj[expert] += pair(f"{site}.{leaves[2]}", HIDDEN, INNER, 2)
        expected = model(torch.tensor([IDS])).logits[0, -1].numpy()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", *leaves],
        "rank_pattern": {leaves[2]: 2}, "base_model_name_or_path": str(tmp_path / "base"), "bias": "none", "inference_mode": True,
    }  # fmt: skip
    (tmp_path / "a").mkdir()
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state, tmp_path / "a/adapter_model.safetensors")
    return tmp_path / "base", tmp_path / "a", expected


@pytest.mark.parametrize("mode", ["swap", "merge"])
def test_as_the_old_names_meant(mode: Any, made: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    base, adapter, expected = made
    done = export(base, {"a": adapter}, tmp_path / "bundle", mode=mode)
    assert done.parity[0].max_difference <= 1e-4
    model = runtime.open(tmp_path / "bundle")
    view = model.adapter("a") if mode == "swap" else model.base
    assert np.abs(view.decoder(1, 16).prefill([IDS])[0] - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_what_has_no_form_over_one_parameter_is_named(made: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base, adapter, _ = made
    whole = load_file(adapter / "adapter_model.safetensors")
    gone = {name: tensor for name, tensor in whole.items() if ".experts.1." not in name}
    save_file(gone, adapter / "adapter_model.safetensors")
    with pytest.raises(UnsupportedAdapterError, match="of some experts and not of expert 1"):
        export(base, {"a": adapter}, tmp_path / "bundle")
    site = next(name for name in whole if ".experts.1." in name).rpartition(".lora_")[0]
    save_file({**whole, f"{site}.lora_magnitude_vector": torch.ones(4)}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="takes LoRA's A and B alone"):
        export(base, {"a": adapter}, tmp_path / "bundle")
