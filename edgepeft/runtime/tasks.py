"""Outputs of each task in a form for people and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .active import ActiveAdapter
from .answers import answer
from .finite import require_finite
from .predictions import THRESHOLD, Prediction, prediction, softmax
from .text import TextEncoder

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TaskRun:
    """A batch of texts that was run with ``active``: its inputs and outputs by name."""

    texts: Sequence[Any]
    inputs: Arrays
    outputs: Arrays
    active: ActiveAdapter
    #: The tokenizer of each row.
    encoders: Sequence[TextEncoder]
    #: The variant and the bundle's folder, for messages.
    variant: str
    path: Path

    def finite(self, row: int, numbers: np.ndarray, name: str) -> np.ndarray:
        """``numbers`` of a row's output ``name``; :class:`NonFiniteError` where some are NaN or infinite."""
        return require_finite(numbers, name, self.active.name_of(row), self.variant, self.path)

    def row(self, row: int) -> np.ndarray:
        """A row's logits ``[..., labels]``."""
        return self.active.logits_of(row, self.outputs["logits"][row])

    def predictions(self, threshold: float = THRESHOLD) -> list[Prediction]:
        """What each row's head says of it; see :func:`.predictions.prediction`."""
        if self.active.row_names is None:  # one adapter: say how much of the whole batch is broken
            self.finite(0, self.outputs["logits"], "logits")
        return [
            prediction(self.finite(row, self.row(row), "logits"), self.active.head_of(row), threshold=threshold)
            for row in range(len(self.texts))
        ]


def _classes(run: TaskRun) -> list[dict[str, Any]]:
    return [found.as_dict() for found in run.predictions()]


def _tokens(run: TaskRun) -> list[dict[str, Any]]:
    results = []
    for place, text in enumerate(run.texts):
        logits, head = run.row(place), run.active.head_of(place)
        tokens = run.encoders[place].tokens(text)
        found = [prediction(each, head) for each in run.finite(place, logits[: len(tokens)], "logits")]
        results.append(
            {"tokens": [{"token": t, "label": p.label, "score": p.score} for t, p in zip(tokens, found, strict=True)]}
        )
    return results


def _fills(run: TaskRun) -> list[dict[str, Any]]:
    results = []
    rows_of_all = zip(run.texts, run.inputs["input_ids"], run.outputs["logits"], strict=True)
    for place, (text, ids, rows) in enumerate(rows_of_all):
        encoder = run.encoders[place]
        mask_id = next((i for t in ("[MASK]", "<mask>") if (i := encoder.token_id(t)) is not None), None)
        if mask_id is None:
            raise InputError("the bundle's tokenizer has no [MASK] or <mask> token")
        positions = np.flatnonzero(ids == mask_id)
        if positions.size == 0:
            raise InputError(f"nothing to fill in {text!r}: put {encoder.token(mask_id)} where a word is missing")
        probabilities = softmax(run.finite(place, rows[positions[0]], "logits").astype(np.float64))
        best = np.argsort(probabilities)[::-1][:5]
        results.append({"fills": [{"token": encoder.token(int(i)), "score": float(probabilities[i])} for i in best]})
    return results


def _answers(run: TaskRun) -> list[dict[str, Any]]:
    results = []
    for row, text in enumerate(run.texts):
        if not isinstance(text, tuple):
            raise InputError(f"a question takes a context: give a pair (question, context), found {text!r:.80}")
        encoding = run.encoders[row].encoding(text)
        if 1 not in encoding.sequence_ids:
            raise InputError(
                f"no token of the context is left beside the question {text[0]!r:.80}: it is empty, or was cut off"
            )
        sides = (run.finite(row, run.outputs[name][row], name) for name in ("start_logits", "end_logits"))
        results.append(answer(text[1], encoding, *sides))
    return results


#: What turns a run into results, for each task that reads texts; tasks that write go through generation.
BY_TASK: dict[str, Callable[[TaskRun], list[dict[str, Any]]]] = {
    "text-classification": _classes,
    "token-classification": _tokens,
    "fill-mask": _fills,
    "question-answering": _answers,
}
