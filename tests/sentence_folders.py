"""Folders as sentence-transformers writes them, over tiny random models; the library itself is the reference."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Words of the tests' own tokenizer, of lengths from one token to more than any limit.
TEXTS = [
    "the film was very good",
    "a BOOK",
    "the plot is not fine , the end is awful .",
    "good " * 60,
    "x",
]


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """The library warns of settings of old versions, and logs what it loads."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def random_module(module: Any, seed: int = 5) -> Any:
    """``module`` with random numbers in every parameter."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def save_sentence(folder: Path, model: Path | str, modules: Sequence[Any], **options: Any) -> Path:
    """Save ``model`` with ``modules`` behind it; ``limit`` is its max_seq_length, other options are SentenceTransformer's."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    limit = options.pop("limit", None)
    with _calm():
        first = Transformer(str(model))
        if limit is not None:
            first.max_seq_length = limit
        SentenceTransformer(modules=[first, *modules], device="cpu", **options).save(
            str(folder), create_model_card=False
        )
    if limit is not None:  # as the versions up to 5 write it, and most folders there are
        path = folder / "sentence_bert_config.json"
        import json

        path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": limit}))
    return folder


def library(folder: Path | str, texts: Sequence[Any], **options: Any) -> np.ndarray:
    """What the library's ``encode`` gives."""
    from sentence_transformers import SentenceTransformer

    with _calm():
        model = SentenceTransformer(str(folder), device="cpu")
        return np.asarray(model.encode(list(texts), show_progress_bar=False, **options))


def worst(mine: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference of two arrays of one shape."""
    assert mine.shape == reference.shape
    return float(np.abs(mine - reference).max())
