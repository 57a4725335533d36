"""Running an encoder-decoder's graphs, or its PyTorch model, on tokens that are given: what a comparison needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..bundle.cache_names import as_pasts, grows
from .parity_causal import Step

#: Tokens that the decoder is compared on, beyond its first.
STEPS = 3


def teacher_forced(
    encode: Step,
    decode: Step,
    inputs: Mapping[str, np.ndarray],
    following: np.ndarray,
    shapes: Mapping[str, Sequence[int | str]],
) -> np.ndarray:
    """Logits ``[batch, tokens, vocabulary]`` after each of ``following``: the first two at once, the others one by one.

    ``encode`` and ``decode`` run a graph from inputs by name to outputs by name; ``shapes`` are the decoder's inputs.
    """
    encoded = encode(inputs)
    rows = len(following)
    cache = as_pasts(encoded)
    cache |= {
        name: np.zeros((rows, int(shape[1]), 0, int(shape[3])), np.float32)
        for name, shape in shapes.items()
        if grows(name)
    }
    logits = []
    for part in (following[:, :2], *np.split(following[:, 2:], following.shape[1] - 2, axis=1)):
        outputs = decode({"input_ids": part, **cross_mask(inputs), **cache})
        cache |= as_pasts(outputs)
        logits.append(outputs["logits"])
    return np.concatenate(logits, axis=1)


def cross_mask(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of the encoder's inputs the decoder reads again: which places are padded. Windows of sound are all of one length."""
    return {"encoder_attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}


def following_tokens(batch: Mapping[str, np.ndarray], vocab: int, start: int) -> np.ndarray:
    """Tokens to force on the decoder: its start token and ``STEPS`` + 1 random ones, int64 ``[batch, tokens]``."""
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, vocab, (len(next(iter(batch.values()))), STEPS + 2), np.int64)
    tokens[:, 0] = start
    return tokens


def reference_logits(module: Any, inputs: Mapping[str, np.ndarray], following: np.ndarray) -> np.ndarray:
    """The same logits from PyTorch, in one pass without a cache."""
    import torch

    with torch.no_grad():
        logits = module(
            **{name: torch.from_numpy(array) for name, array in inputs.items()},
            decoder_input_ids=torch.from_numpy(following),
            use_cache=False,
        ).logits
    return np.asarray(logits.numpy())
