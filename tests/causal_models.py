"""Tiny random causal language models, one of each architecture that edgepeft promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: GroupQueryAttention rotates heads of a multiple of 16 numbers, so no head here is smaller.
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma3": (
        "Gemma3",
        {
            "hidden_size": 80,  # its root is no float16, which mobius rounds embeddings' scale to
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 8}),
    "gpt2": ("GPT2", {}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 64}),
    "gpt-neox": ("GPTNeoX", {"hidden_size": 256}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "granite": (
        "Granite",
        {
            "logits_scaling": 2.0,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.3,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "starcoder2": ("Starcoder2", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
}
#: A mixture of experts whose weights lie as ``[in, out]``, gate and up in turn, with biases.
TRANSPOSED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss": (
        "GptOss",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}
#: Architectures that mobius does not build, which are traced.
TRACED: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": (
        "Falcon",
        {"alibi": False, "new_decoder_architecture": False, "parallel_attn": True, "multi_query": True},
    ),
    "stablelm": ("StableLm", {}),
}


def build_causal(folder: Path, name: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write the model called ``name`` to ``folder`` with every parameter random."""
    import torch
    import transformers

    kind, extra = {**CAUSAL, **TRANSPOSED, **TRACED}[name]
    options = {**SIZES, **extra, **changes}
    if kind in {"OPT", "GPTNeoX", "Falcon"}:
        del options["num_key_value_heads"]
    if kind == "GPT2":
        renamed = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        options = {renamed.get(key, key): value for key, value in options.items()}
        options |= {"n_positions": options.pop("max_position_embeddings"), "n_inner": None}
        del options["num_key_value_heads"], options["intermediate_size"]
    config = getattr(transformers, f"{'Gemma3Text' if kind == 'Gemma3' else kind}Config")(**options)
    model_class = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.1 * noise if parameter.ndim == 1 else 0.15 * noise)
    model.save_pretrained(folder)
    return folder


def unchanged(self: Any, model: Any) -> Any:
    """In place of a graph pass's ``call``: nothing is done."""
    import onnx_ir as ir

    return ir.passes.PassResult(model, modified=False)
