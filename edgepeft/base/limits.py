"""The longest input of a model in tokens: from the positions that it has, and from what its files say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .samples import Shapes, random_batches, vocabulary

#: Tokens of the text that is run to see which tables are read by position.
_TOKENS = 8
#: What tokenizers without a limit write as theirs.
_NO_LIMIT = 1_000_000


def positions(model: Any, inputs: Shapes, *, generates: bool) -> int | None:
    """How many tokens the model has positions for; ``None`` where nothing limits it.

    Args:
        model: The PyTorch model.
        inputs: Its inputs, by name.
        generates: Whether the model writes texts; then it is what its configuration says, and nothing is run.
    """
    found = None if generates else table_limit(model, inputs)
    return _configured(model.config) if found is None else found


def longest(positions: int | None, files: Mapping[str, bytes], said: int | None) -> int | None:
    """Longest input in tokens: as many as there are positions, or what the tokenizer says where that is less.

    ``said`` is what sentence-transformers cuts texts to, which takes the place of what the tokenizer says.
    """
    limits = [positions, _tokenizer_limit(files) if said is None else said]
    return min((limit for limit in limits if limit is not None), default=None)


def _configured(config: Any) -> int | None:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def _tokenizer_limit(files: Mapping[str, bytes]) -> int | None:
    if "tokenizer_config.json" not in files:
        return None
    declared = json.loads(files["tokenizer_config.json"]).get("model_max_length")
    return declared if isinstance(declared, int) and 0 < declared < _NO_LIMIT else None


def table_limit(model: Any, inputs: Shapes) -> int | None:
    """How many positions the model has in tables, found by content: by what is looked up while a short text is read.

    A table of positions is read at consecutive rows; the first one is where the model begins to count (RoBERTa-like models
    begin behind the row of their pad token), so as many tokens fit as there are rows from there on.

    Returns:
        Tokens, or ``None`` for a model without such a table (rotary and relative positions, sinusoids), and for one that cannot be
        run on random inputs: its capture says why.
    """
    import torch

    vocab, pad_id = vocabulary(model.config.to_dict())
    if vocab <= _TOKENS:
        return None
    (batch,) = random_batches(inputs, vocab=vocab, pad_id=pad_id, shapes=((1, _TOKENS),), seed=3)
    with _lookups() as found, torch.no_grad():
        try:
            model(**{name: torch.from_numpy(array) for name, array in batch.items()})
        except Exception:  # whatever a model's own code raises
            return None
    tokens = batch["input_ids"].reshape(-1)
    limits = []
    for rows, places in found:
        last = places.reshape(-1, places.shape[-1])[-1] if places.ndim else places.reshape(-1)
        counts_up = last.size == _TOKENS and np.array_equal(last, last[0] + np.arange(_TOKENS))
        if counts_up and not np.array_equal(last, tokens):
            limits.append(rows - int(last[0]))
    return min(limits) if limits else None


@contextmanager
def _lookups() -> Iterator[list[tuple[int, np.ndarray]]]:
    """Every look-up in an embedding table while the block runs: rows of the table, and the rows that were read."""
    import torch

    found: list[tuple[int, np.ndarray]] = []
    original = torch.nn.functional.embedding

    def noted(input: Any, weight: Any, *arguments: Any, **options: Any) -> Any:
        found.append((int(weight.shape[0]), input.detach().cpu().numpy().copy()))
        return original(input, weight, *arguments, **options)

    torch.nn.functional.embedding = noted
    try:
        yield found
    finally:
        torch.nn.functional.embedding = original
