"""A tiny random Whisper: windows of one second, two layers, four languages; ``timed`` with timestamps and a token for silence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import _vocabulary, save_lora, save_tokenizer
from made_before import copy_of

SPEECH = "automatic-speech-recognition"
RATE = 16_000
#: Special tokens behind the words, in Whisper's order.
SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|ja|>", "<|translate|>", "<|transcribe|>",
    "<|notimestamps|>",
)  # fmt: skip
#: From 0.00 to 1.00 s in steps of 0.02 s, as in Whisper; these are no special tokens there either.
TIMESTAMPS = tuple(f"<|{step / 50:.2f}|>" for step in range(51))


def special(timed: bool) -> tuple[str, ...]:
    """Special tokens in their order."""
    return (*SPECIAL[:-1], "<|nospeech|>", SPECIAL[-1]) if timed else SPECIAL


def tokens(timed: bool = False) -> dict[str, int]:
    """Special tokens, and timestamps behind them, and their numbers."""
    names = (*special(timed), *(TIMESTAMPS if timed else ()))
    return {token: len(_vocabulary("bert")) + place for place, token in enumerate(names)}


def build_whisper(folder: Path, timed: bool = False) -> Path:
    """Write a random Whisper with its tokenizer, feature settings and generation settings to ``folder``."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    number, words = tokens(timed), _vocabulary("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = WhisperConfig(
            vocab_size=len(words) + len(number), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=80, max_source_positions=50,
            max_target_positions=40, pad_token_id=number["<|endoftext|>"], bos_token_id=number["<|endoftext|>"],
            eos_token_id=number["<|endoftext|>"], decoder_start_token_id=number["<|startoftranscript|>"], suppress_tokens=None,
            begin_suppress_tokens=None,
        )  # fmt: skip
        model = WhisperForConditionalGeneration(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "encoder.embed_positions" in name:
                    continue
                noise = torch.randn_like(parameter) * 0.3
                parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    settings = {
        "is_multilingual": True,
        "lang_to_id": {token: number[token] for token in SPECIAL[2:6]},
        "task_to_id": {task: number[f"<|{task}|>"] for task in ("translate", "transcribe")},
        "no_timestamps_token_id": number["<|notimestamps|>"],
        "decoder_start_token_id": number["<|startoftranscript|>"],
        "eos_token_id": number["<|endoftext|>"],
        "pad_token_id": number["<|endoftext|>"],
        "suppress_tokens": [6, 7, number["<|startoftranscript|>"]],
        "begin_suppress_tokens": [number["<|endoftext|>"]],
        "max_length": 40,
        "return_timestamps": False,
        **({"max_initial_timestamp_index": 20} if timed else {}),
    }
    model.generation_config._from_model_config = False  # else transformers makes it anew of the model's
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    save_tokenizer(folder, [*words, *number])
    _mark_added(folder, special(timed), TIMESTAMPS if timed else ())
    extractor = {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "hop_length": 160, "n_fft": 400,
        "chunk_length": 1, "n_samples": RATE, "nb_max_frames": 100, "sampling_rate": RATE, "padding_value": 0.0,
        "padding_side": "right", "return_attention_mask": False, "processor_class": "WhisperProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor), encoding="utf-8")
    return folder


def _mark_added(folder: Path, special: tuple[str, ...], others: tuple[str, ...]) -> None:
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in others])
    tokenizer.save(str(folder / "tokenizer.json"))


def save_adapters(root: Path, model: Path) -> dict[str, Path]:
    """LoRA adapters of two ranks and a DoRA with random numbers over ``model``, below ``root`` by their names."""
    sites = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    return {
        "small": save_lora(root / "small", model, task=SPEECH, scale=0.2, r=2, target_modules=["q_proj", "v_proj"], seed=1),
        "wide": save_lora(root / "wide", model, task=SPEECH, scale=0.2, r=5, target_modules=sites, seed=2),
        "dora": save_lora(root / "dora", model, task=SPEECH, scale=0.2, target_modules=["q_proj", "v_proj"], use_dora=True, seed=3),
    }  # fmt: skip


def build_whisper_bundle(folder: Path, timed: bool = False) -> Path:
    """``folder/model``, the adapters of :func:`save_adapters`, and ``folder/bundle`` with ``small`` and ``dora``; its path."""
    return copy_of(_make_whisper_bundle, folder, *(["timed"] if timed else []))


def _make_whisper_bundle(folder: Path, timed: str = "") -> Path:
    from edgepeft.pipeline import export

    model = build_whisper(folder / "model", bool(timed))
    sources = save_adapters(folder, model)
    done = export(model, {name: sources[name] for name in ("small", "dora")}, folder / "bundle", slots="all-linear")
    assert all(p.max_difference <= 1e-4 and p.changes_output for p in done.parity)
    return folder / "bundle"


def sound(seed: int, seconds: float = 0.8, rate: int = RATE) -> np.ndarray:
    """Tones and noise, ``[samples]`` of -1 to 1."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tones = sum(
        np.sin(2 * np.pi * f * time + p) for f, p in zip(rng.uniform(100, 3000, 4), rng.uniform(0, 6, 4), strict=True)
    )
    return (0.2 * tones + 0.05 * rng.standard_normal(time.size)).astype(np.float32)


def peft_whisper(bundle: Path, name: str | None, waves: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """The bundle's model in PyTorch under PEFT's unmerged adapter ``name``, and the frames of sounds as transformers makes them."""
    from peft import PeftModel
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder = bundle.with_name("model")
    reference: Any = WhisperForConditionalGeneration.from_pretrained(folder)
    if name is not None:
        reference = PeftModel.from_pretrained(reference, bundle.with_name(name))
    found = WhisperFeatureExtractor.from_pretrained(folder)(waves, sampling_rate=RATE, return_tensors="pt")
    return reference.eval(), found.input_features
