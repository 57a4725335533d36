"""The language part of vision-language models, and adapters trained over the whole. Reference: the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from causal import save_byte_tokenizer
from conftest import randomize
from peft import LoraConfig, get_peft_model

from edgepeft import runtime
from edgepeft.errors import InputError, UnsupportedAdapterError
from edgepeft.pipeline import export, validate

IDS = [1, 7, 30, 44, 90, 12, 5]
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def gemma3(folder: Path) -> Any:
    vocabulary = save_byte_tokenizer(folder)
    config = transformers.Gemma3Config(
        text_config={
            **TEXT, "vocab_size": vocabulary, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4, image_token_index=290, boi_token_index=291, eoi_token_index=292,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


def qwen2_vl(folder: Path) -> Any:
    vocabulary = save_byte_tokenizer(folder)
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": vocabulary, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        vision_config={"embed_dim": 32, "hidden_size": 64, "depth": 1, "num_heads": 2},
        image_token_id=290, video_token_id=291, vision_start_token_id=292,
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config)


@pytest.fixture(params=[gemma3, qwen2_vl], ids=["gemma3", "qwen2_vl"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = request.param(tmp_path / "base")
    randomize(model, 0, scale=0.2)
    model.eval().save_pretrained(tmp_path / "base")
    return tmp_path / "base", model


def adapter(model: Any, folder: Path, targets: Any) -> np.ndarray:
    """Save a random LoRA over the whole model; the whole's logits with it."""
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(peft.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        peft.eval().save_pretrained(folder)
        found: np.ndarray = peft(input_ids=torch.tensor([IDS])).logits[0, -1].numpy()
    return found


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj", "down_proj"], r".*language_model.*\.(q_proj|v_proj|down_proj)"]
)
def test_text_through_the_language_part(whole: tuple[Path, Any], targets: Any, tmp_path: Path) -> None:
    folder, model = whole
    if isinstance(targets, list) and "Gemma3" in type(model).__name__:
        targets = [
            f"language_model.layers.{layer}.self_attn.{site}" for layer in (0, 1) for site in ("q_proj", "o_proj")
        ]
    expected = adapter(model, tmp_path / "a", targets)
    said: list[str] = []
    done = export(folder, {"a": tmp_path / "a"}, tmp_path / "bundle", announce=said.append)
    assert any("its language part is exported, images and sound are not read" in line for line in said)
    assert done.bundles[0].manifest.task == "text-generation"
    assert done.parity[0].max_difference <= 1e-4
    found = runtime.open(tmp_path / "bundle").adapter("a").decoder(1, 32).prefill([IDS])[0]
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
    assert validate(tmp_path / "bundle", adapters={"a": tmp_path / "a"}).passed


def test_an_adapter_of_the_eyes_is_refused_by_name(whole: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = whole
    adapter(model, tmp_path / "a", r".*(language_model.*q_proj|vision.*q_proj|visual.*qkv)")
    with pytest.raises(
        UnsupportedAdapterError, match=r"adapts modules that see or hear \((model\.)?(vision_tower|visual)"
    ):
        export(folder, {"a": tmp_path / "a"}, tmp_path / "bundle")


def test_a_language_part_without_a_causal_model_is_named() -> None:
    from edgepeft.base.language_part import _causal_model

    config = transformers.MllamaConfig().text_config
    with pytest.raises(InputError, match="no causal language model of the language part 'unheard_of'"):
        _causal_model("folder", type("Config", (), {"model_type": "unheard_of", "to_dict": config.to_dict}))
