"""A tiny random Llama with a byte-level tokenizer and a chat template, and a bundle of it with two LoRA adapters."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from conftest import randomize, save_lora
from made_before import copy_of

CONTEXT = 192
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_byte_tokenizer(folder: Path, *, chat: str | None = CHAT) -> int:
    """A byte-level BPE tokenizer with a few merges: any text has tokens, and any tokens are some bytes. Its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the film was very good and the end of the book was not", "naïve café 日本"], trainer
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if chat is not None:
        (folder / "chat_template.jinja").write_text(chat, encoding="utf-8")
    return int(tokenizer.get_vocab_size())


def build_causal(folder: Path, *, seed: int = 0, chat: str | None = CHAT, **sizes: Any) -> Path:
    """Write a random Llama with grouped queries (4 heads over 2) and its tokenizer to ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = save_byte_tokenizer(folder, chat=chat)
    config = LlamaConfig(
        vocab_size=vocabulary,
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "max_position_embeddings": CONTEXT,
            **sizes,
        },
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    randomize(model, seed, scale=0.3)
    model.save_pretrained(folder)
    return folder


_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
_GROUPED = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "opt": ("OPT", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 64}),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 6}),  # shorter than the prompts
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 16}),
    "gemma3_text": ("Gemma3Text", {**_GROUPED, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16,
                                   "layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip


def build_other(folder: Path, architecture: str, *, seed: int = 0) -> Path:
    """Write a random model of another architecture (a key of ``OTHERS``) and its tokenizer to ``folder``."""
    import torch
    import transformers

    prefix, sizes = OTHERS[architecture]
    vocabulary = save_byte_tokenizer(folder)
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=vocabulary, bos_token_id=1, eos_token_id=2, pad_token_id=2, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(model, seed, scale=0.3)
    model.save_pretrained(folder)
    return folder


ADAPTERS: dict[str, dict[str, Any]] = {
    "wide": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "seed": 1},
    "narrow": {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "seed": 2},
}


def build_causal_bundle(folder: Path) -> Path:
    """``folder/model``, ``folder/<adapter>`` and ``folder/bundle`` of them; the bundle's path. Copied: see :mod:`made_before`."""
    return copy_of(make_causal_bundle, folder)


def make_causal_bundle(folder: Path) -> Path:
    """The same, captured here and now."""
    from edgepeft.pipeline import add_slots, capture, read_adapter, write_bundle

    model = build_causal(folder / "model")
    for name, options in ADAPTERS.items():
        save_lora(folder / name, model, task="text-generation", task_type="CAUSAL_LM", scale=0.25, **options)
    base = capture(model, task="text-generation")
    adapters = [read_adapter(folder / name, name=name, weights=base.weight) for name in ADAPTERS]
    slotted = add_slots(base, adapters, reserve="all-linear")
    return write_bundle(folder / "bundle", base, slotted, adapters).path


#: PEFT's type, its options, and how many states it puts before the sequence.
METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "prefix": ("PREFIX_TUNING", {"num_virtual_tokens": 5}, 5),
    "projected": ("PREFIX_TUNING", {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 24}, 4),
    "cartridge": ("CARTRIDGE", {"num_virtual_tokens": 6, "num_frozen_tokens": 1}, 6),
    "prompt": ("PROMPT_TUNING", {"num_virtual_tokens": 7}, 7),
    "ptuning": ("P_TUNING", {"num_virtual_tokens": 3, "encoder_hidden_size": 24}, 3),
    "cpt": ("CPT", {"cpt_token_ids": [4, 9, 5, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 2, 3]}, 4),
    "multitask": ("MULTITASK_PROMPT_TUNING", {"num_virtual_tokens": 5, "num_tasks": 3, "num_ranks": 2}, 5),
}
#: Of those that hold several tasks, the one that is meant.
TASKS = {"multitask": 2}


def save_virtual(out: Path, model: Path, name: str, **more: Any) -> Path:
    """A checkpoint as PEFT saves it, every trained number moved."""
    import torch
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import AutoModelForCausalLM

    peft_type, options, _ = METHODS[name]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        config = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](task_type="CAUSAL_LM", **{**options, **more})
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        with torch.no_grad():
            for _, parameter in sorted(wrapped.named_parameters()):
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.5)
        wrapped.save_pretrained(out)
    return of_task(out)


def of_task(checkpoint: Path) -> Path:
    """A checkpoint below a folder of its name, with the task behind it that is meant."""
    task = TASKS.get(checkpoint.name)
    return checkpoint if task is None else checkpoint.with_name(f"{checkpoint.name}#task={task}")


def build_generating_bundle(folder: Path) -> Path:
    """``folder/bundle`` of the random Llama with two LoRA adapters and one that puts states before the sequence; its path.

    Copied: see :mod:`made_before`.
    """
    return copy_of(_make_generating_bundle, folder)


def _make_generating_bundle(folder: Path) -> Path:
    from edgepeft.pipeline import export

    model = build_causal(folder / "model")
    for name, options in ADAPTERS.items():
        save_lora(folder / name, model, task="text-generation", task_type="CAUSAL_LM", scale=0.25, **options)
    save_virtual(folder / "prefix", model, "prefix")
    sources = {name: folder / name for name in (*ADAPTERS, "prefix")}
    export(model, sources, folder / "bundle", task="text-generation")
    return folder / "bundle"
