"""Encoded rows, and batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .tokenizer import HubTokenizer

if TYPE_CHECKING:
    import torch

#: So many batches are sorted by length at a time: rows of a batch are then alike, and batches still differ between epochs.
_SORTED_BATCHES = 50


@dataclass(eq=False)
class Row:
    """One encoded row: ``features`` as the tokenizer gives them, unpadded, and what the head is to give.

    ``hidden`` ``[tokens, hidden]`` are the states that enter the lowest trained layer, where they are kept. ``source`` is the
    number of its source, where there are several.
    """

    features: dict[str, Any]
    target: Any
    source: int = 0
    hidden: torch.Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.features["input_ids"])


class Collator:
    """Pads rows to the longest of a batch, as the tokenizer does, into tensors on ``device``."""

    def __init__(self, tokenizer: HubTokenizer, device: Any) -> None:
        from transformers import DataCollatorWithPadding

        self.device = device
        self._pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The model's inputs, ``labels`` among them."""
        batch = self._pad([{**row.features, "labels": row.target} for row in rows])
        return {name: value.to(self.device) for name, value in batch.items()}


def epoch_batches(rows: Sequence[Row], batch_size: int, generator: np.random.Generator) -> list[list[Row]]:
    """All rows once, in an order that ``generator`` draws; the last batch may be smaller.

    Rows are shuffled, sorted by length within 50 batches at a time, and the batches shuffled again. The longest stands
    first, so that memory runs out at once or not at all.
    """
    order = generator.permutation(len(rows))
    window = batch_size * _SORTED_BATCHES
    batches: list[list[Row]] = []
    for start in range(0, len(order), window):
        part = sorted((rows[place] for place in order[start : start + window]), key=len, reverse=True)
        batches += [part[place : place + batch_size] for place in range(0, len(part), batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size]
    short = [batch for batch in batches if len(batch) < batch_size]
    shuffled = [whole[place] for place in generator.permutation(len(whole))]
    if shuffled:
        longest = max(range(len(shuffled)), key=lambda place: len(shuffled[place][0]))
        shuffled.insert(0, shuffled.pop(longest))
    return shuffled + short


def sorted_batches(rows: Sequence[Row], batch_size: int) -> Iterator[tuple[list[int], list[Row]]]:
    """Places and rows of batches of similar length, for measuring; no order of rows is kept."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        yield places, [rows[place] for place in places]
