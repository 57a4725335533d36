"""Tiny random encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import _vocabulary, save_lora, save_tokenizer
from made_before import copy_of

SEQ2SEQ = "text2text-generation"
#: Model → (class, config class, config, sites of attention, sites of all kinds).
MODELS: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "T5": ({"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "eos_token_id": 1,
            "decoder_start_token_id": 0}, ["q", "v"], ["q", "k", "v", "o", "wi", "wo"]),
    "Bart": ({"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
              "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
              "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None},
             ["q_proj", "v_proj"], ["q_proj", "k_proj", "fc1", "fc2", "out_proj"]),
}  # type: ignore[dict-item]  # fmt: skip


def build_encoder_decoder(folder: Path, kind: str) -> Path:
    """Write a random model of ``kind`` (a key of ``MODELS``) and its tokenizer to ``folder``."""
    import torch
    import transformers

    vocabulary = _vocabulary("bert")
    settings = {"vocab_size": len(vocabulary), "pad_token_id": 0, **MODELS[kind][0]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**settings)
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter) * 0.3
                parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    model.save_pretrained(folder)
    save_tokenizer(folder, vocabulary)
    return folder


def save_adapters(root: Path, model: Path, kind: str) -> dict[str, Path]:
    """LoRA adapters of two ranks and a DoRA with random numbers over ``model``, below ``root`` by their names."""
    _, attention, everything = MODELS[kind]
    common: dict[str, Any] = {"task": SEQ2SEQ, "task_type": "SEQ_2_SEQ_LM", "scale": 0.2}
    return {
        "small": save_lora(root / "small", model, r=2, target_modules=attention, seed=1, **common),
        "wide": save_lora(root / "wide", model, r=5, target_modules=everything, seed=2, **common),
        "dora": save_lora(root / "dora", model, target_modules=attention, use_dora=True, seed=3, **common),
    }


def build_encoder_decoder_bundle(folder: Path, kind: str) -> Path:
    """``folder/model``, the adapters of :func:`save_adapters`, and ``folder/bundle`` with ``small`` and ``dora``; its path.

    Copied: see :mod:`made_before`.
    """
    return copy_of(_make_encoder_decoder_bundle, folder, kind)


def _make_encoder_decoder_bundle(folder: Path, kind: str) -> Path:
    from edgepeft.pipeline import export

    model = build_encoder_decoder(folder / "model", kind)
    sources = save_adapters(folder, model, kind)
    done = export(model, {name: sources[name] for name in ("small", "dora")}, folder / "bundle", slots="all-linear")
    assert all(p.max_difference <= 1e-4 and p.changes_output for p in done.parity)
    return folder / "bundle"


def made_once(factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``get(kind)``: the model of that kind, written when it is first asked for."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build_encoder_decoder(factory.mktemp(kind), kind)
        return made[kind]

    return get
