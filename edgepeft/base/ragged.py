"""Padded batches of random tokens, for parity."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

SHAPES = ((2, 9), (3, 17), (1, 5))


def ragged_batches(
    *,
    vocab: int,
    pad_id: int,
    input_names: Collection[str],
    max_length: int | None = None,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    seed: int = 0,
) -> list[dict[str, np.ndarray]]:
    """Batches whose rows differ in length: int64 ``[batch, sequence]`` by input name.

    The first row fills its batch, later ones are padded on the right, so that a mask that is ignored shows.
    """
    rng = np.random.default_rng(seed)
    batches = []
    for batch, length in shapes:
        length = min(length, max_length or length)
        ids = rng.integers(0, vocab, (batch, length), dtype=np.int64)
        ids[ids == pad_id] = (pad_id + 1) % vocab
        mask = np.ones((batch, length), np.int64)
        for row in range(1, batch):
            mask[row, max(2, length - 3 * row) :] = 0
        types = np.zeros((batch, length), np.int64)
        types[:, length // 2 :] = 1
        inputs = {
            "input_ids": np.where(mask == 1, ids, pad_id),
            "attention_mask": mask,
            "token_type_ids": types * mask,
        }
        batches.append({name: array for name, array in inputs.items() if name in input_names})
    return batches
