"""Prefill and decode of a causal language model, in ONNX Runtime and in PyTorch, on the same ragged prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ragged import SHAPES, ragged_batches

#: Runs one step: inputs by name (caches included) to outputs by name.
Step = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

_PAST, _PRESENT = "past_key_values.", "present."


@dataclass(frozen=True)
class CausalBatch:
    """Prompts padded on the right, and the tokens that follow each.

    ``ids`` and ``mask`` are int64 ``[batch, sequence]``, ``following`` is int64 ``[batch, steps]``.
    """

    ids: np.ndarray
    mask: np.ndarray
    following: np.ndarray


def causal_batches(
    *, vocab: int, pad_id: int, max_length: int | None = None, window: int | None = None, steps: int = 2, seed: int = 0
) -> list[CausalBatch]:
    """Ragged prompts for parity; with a sliding ``window`` of up to 1,024 tokens one prompt outgrows it."""
    room = None if max_length is None else max(1, max_length - steps)
    shapes = [*SHAPES]
    if window is not None and window <= 1024 and (room is None or window + 7 <= room):
        shapes.append((1, window + 7))
    names = ("input_ids", "attention_mask")
    prompts = ragged_batches(
        vocab=vocab, pad_id=pad_id, input_names=names, max_length=room, shapes=tuple(shapes), seed=seed
    )
    rng = np.random.default_rng(seed + 1)
    return [
        CausalBatch(p["input_ids"], p["attention_mask"], rng.integers(0, vocab, (len(p["input_ids"]), steps), np.int64))
        for p in prompts
    ]


def empty_cache(inputs: Mapping[str, Sequence[int | str]], batch: int) -> dict[str, np.ndarray]:
    """Caches of no tokens: float32 ``[batch, heads, 0, head_dim]`` by input name. ``inputs`` are names and shapes."""
    return {
        name: np.zeros((batch, int(shape[1]), 0, int(shape[3])), np.float32)
        for name, shape in inputs.items()
        if name.startswith(_PAST)
    }


def run_causal(
    step: Step, inputs: Mapping[str, Sequence[int | str]], batch: CausalBatch
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the prompts ``[batch, sequence, vocab]`` and of each following token ``[batch, steps, vocab]``."""
    lengths = batch.mask.sum(axis=1)
    mask = batch.mask
    rows, width = batch.ids.shape
    feeds = {"input_ids": batch.ids, "attention_mask": mask, **empty_cache(inputs, rows)}
    if "position_ids" in inputs:
        feeds["position_ids"] = np.broadcast_to(np.arange(width, dtype=np.int64), batch.ids.shape).copy()
    outputs = step(feeds)
    prompt = outputs["logits"]
    following = []
    for index in range(batch.following.shape[1]):
        mask = np.concatenate([mask, np.ones((rows, 1), np.int64)], axis=1)
        feeds = {"input_ids": batch.following[:, index : index + 1], "attention_mask": mask}
        feeds |= {_PAST + name.removeprefix(_PRESENT): a for name, a in outputs.items() if name.startswith(_PRESENT)}
        if "position_ids" in inputs:
            feeds["position_ids"] = (lengths + index)[:, None].astype(np.int64)
        outputs = step(feeds)
        following.append(outputs["logits"][:, -1])
    return prompt, np.stack(following, axis=1)


def reference_causal(module: Any, batch: CausalBatch) -> tuple[np.ndarray, np.ndarray]:
    """The same logits from PyTorch: prompts as padded, following tokens by running each row whole and unpadded."""
    import torch

    with torch.no_grad():
        prompt = module(
            input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask), use_cache=False
        ).logits
        following = []
        for ids, mask, after in zip(batch.ids, batch.mask, batch.following, strict=True):
            whole = np.concatenate([ids[mask == 1], after])[None]
            logits = module(input_ids=torch.from_numpy(whole), use_cache=False).logits
            following.append(logits[0, -len(after) :].numpy())
    return prompt.numpy(), np.stack(following)


def causal_difference(
    mine: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray], mask: np.ndarray
) -> float:
    """max |logit difference| over real tokens and following ones, relative where logits exceed 1."""
    worst = 0.0
    for found, expected, weight in zip(mine, reference, (mask[:, :, None], 1), strict=True):
        difference = np.abs(found.astype(np.float64) - expected) * weight
        if not np.isfinite(difference).all():
            return float("inf")
        worst = max(worst, float(difference.max(initial=0.0)) / max(1.0, float(np.abs(expected).max(initial=0.0))))
    return worst
