"""Training a LoRA of Whisper with PEFT on one voice, on a processor: a window of 8 s instead of 30 makes it affordable.

Whisper reads 30 s whatever is said in them, and nearly all of a training step's time goes into that silence. The clips here are
shorter: the encoder's table of positions is cut to 8 s for training. The adapter has no weights of its own there, and is used
with the whole window afterwards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, RANK, ALPHA = 8, 8, 16


def train(
    base: Path,
    waves: Sequence[np.ndarray],
    texts: Sequence[str],
    out: Path,
    *,
    steps: int,
    rate: float = 1e-3,
    batch: int = 2,
) -> list[float]:
    """Train on clips ``[samples]`` at 16 kHz and what is said in them, save the adapter to ``out``; the loss of each step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.manual_seed(0)
    torch.set_num_threads(1)
    processor = WhisperProcessor.from_pretrained(base, language="en", task="transcribe")
    model = shortened(WhisperForConditionalGeneration.from_pretrained(base))
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    peft_model = get_peft_model(model, settings).train()
    weights = [weight for weight in peft_model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    order: list[int] = []
    losses = []
    for _ in range(steps):
        if len(order) < batch:
            order = random.Random(len(losses)).sample(range(len(texts)), len(texts))
        rows = [order.pop() for _ in range(batch)]
        loss = peft_model(**inputs(processor, [waves[row] for row in rows], [texts[row] for row in rows])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    peft_model.peft_config["default"].base_model_name_or_path = str(base)
    peft_model.save_pretrained(out)
    return losses


def shortened(model: Any) -> Any:
    """A Whisper whose encoder reads :data:`SECONDS` instead of 30."""
    import torch

    positions = SECONDS * 50
    encoder = model.model.encoder
    table = torch.nn.Embedding(positions, model.config.d_model)
    table.weight = torch.nn.Parameter(encoder.embed_positions.weight[:positions].detach().clone(), requires_grad=False)
    encoder.embed_positions = table
    model.config.max_source_positions = positions
    return model


def inputs(processor: Any, waves: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, Any]:
    """Frames ``[rows, 80, 800]``, the tokens fed to the decoder and those that it is to write, both ``[rows, tokens]``."""
    import torch

    longest = max(map(len, waves))
    if longest > SECONDS * 16_000:
        raise ValueError(f"a clip has {longest / 16_000:.1f} s; the window of training has {SECONDS}")
    frames = processor(list(waves), sampling_rate=16_000, return_tensors="pt")["input_features"]
    tokens = processor.tokenizer(list(texts), padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    labels = torch.where(mask.bool(), ids, -100)[:, 1:].clone()
    labels[:, :3] = -100  # language, task and "no timestamps" are given, not written
    return {"input_features": frames[:, :, : SECONDS * 100], "decoder_input_ids": ids[:, :-1], "labels": labels}
