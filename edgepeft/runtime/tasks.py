"""Outputs of each task in a form for people and JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .finite import require_finite
from .text import prediction, softmax

if TYPE_CHECKING:
    from .session import Runtime

Texts = Sequence[str] | Sequence[tuple[str, str]]  # what Runtime.run takes


def _finite(runtime: Runtime, numbers: np.ndarray, name: str) -> np.ndarray:
    return require_finite(numbers, name, runtime.active, runtime.variant, runtime.bundle.path)


def _classes(runtime: Runtime, texts: Texts) -> list[dict[str, Any]]:
    return [p.as_dict() for p in runtime.predict(texts)]


def _tokens(runtime: Runtime, texts: Texts) -> list[dict[str, Any]]:
    logits = runtime.forward(runtime.encode(texts))["logits"]
    labels = runtime.labels or tuple(f"LABEL_{i}" for i in range(logits.shape[-1]))
    results = []
    for text, rows in zip(texts, logits, strict=True):
        tokens = runtime.encoder.tokens(text)  # type: ignore[arg-type] # zip loses which of the two
        found = [prediction(row, labels) for row in _finite(runtime, rows[: len(tokens)], "logits")]
        results.append(
            {"tokens": [{"token": t, "label": p.label, "score": p.score} for t, p in zip(tokens, found, strict=True)]}
        )
    return results


def _fills(runtime: Runtime, texts: Texts) -> list[dict[str, Any]]:
    mask_id = next((i for t in ("[MASK]", "<mask>") if (i := runtime.encoder.token_id(t)) is not None), None)
    if mask_id is None:
        raise InputError("the bundle's tokenizer has no [MASK] or <mask> token")
    inputs = runtime.encode(texts)
    logits = runtime.forward(inputs)["logits"]
    results = []
    for text, ids, rows in zip(texts, inputs["input_ids"], logits, strict=True):
        positions = np.flatnonzero(ids == mask_id)
        if positions.size == 0:
            raise InputError(
                f"nothing to fill in {text!r}: put {runtime.encoder.token(mask_id)} where a word is missing"
            )
        probabilities = softmax(_finite(runtime, rows[positions[0]], "logits").astype(np.float64))
        best = np.argsort(probabilities)[::-1][:5]
        results.append(
            {"fills": [{"token": runtime.encoder.token(int(i)), "score": float(probabilities[i])} for i in best]}
        )
    return results


def _embeddings(runtime: Runtime, texts: Texts) -> list[dict[str, Any]]:
    inputs = runtime.encode(texts)
    hidden = runtime.forward(inputs)["last_hidden_state"]
    mask = inputs["attention_mask"][:, :, None]
    pooled = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
    return [{"embedding": row.tolist()} for row in _finite(runtime, pooled, "last_hidden_state")]


def _answers(runtime: Runtime, texts: Texts) -> list[dict[str, Any]]:
    if not all(isinstance(text, str) for text in texts):
        raise InputError("pairs of texts cannot be generated from")
    return [found.as_dict() for found in runtime.generate([str(text) for text in texts])]


_BY_TASK: dict[str, Callable[[Runtime, Texts], list[dict[str, Any]]]] = {
    "text-classification": _classes,
    "token-classification": _tokens,
    "fill-mask": _fills,
    "feature-extraction": _embeddings,
    "text2text-generation": _answers,
    "text-generation": _answers,
}


def results(runtime: Runtime, texts: Texts) -> list[dict[str, Any]]:
    """One result a text, by the bundle's task."""
    task = runtime.manifest.task
    if task not in _BY_TASK:
        raise InputError(
            f"{runtime.bundle.path} is for {task}, which does not run on texts here: {', '.join(_BY_TASK)} do"
        )
    return _BY_TASK[task](runtime, texts)
