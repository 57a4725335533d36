"""What is predicted of a text: one label of several, any number of labels, or numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Head
from ..bundle.heads import Activation
from ..errors import InputError

#: A label of a multi-label head is chosen where its probability is above this.
THRESHOLD = 0.5


@dataclass(frozen=True)
class Prediction:
    """A label with its score; ``probabilities`` by label. This is what a head gives whose labels exclude each other."""

    label: str
    score: float
    probabilities: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"label": self.label, "score": self.score, "probabilities": self.probabilities}


@dataclass(frozen=True)
class MultiLabelPrediction(Prediction):
    """Any number of labels: each has a probability of its own, and ``labels`` are those above the threshold, likeliest first.

    ``label`` and ``score`` are the likeliest label, whether or not it is above the threshold.
    """

    labels: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**super().as_dict(), "labels": list(self.labels)}


@dataclass(frozen=True)
class Score(Prediction):
    """Numbers in place of a choice: a regression, a reward, how well a passage answers a query.

    ``values`` are the head's outputs by name, as the head's activation leaves them (a cross-encoder's is the sigmoid);
    ``logits`` are the same before it. ``label`` and ``score`` are the first output, and ``probabilities`` is empty.
    """

    values: dict[str, float]
    logits: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"label": self.label, "score": self.score, "values": self.values, "logits": self.logits}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """A probability for each number, without overflow."""
    small = np.exp(-np.abs(logits))
    result: np.ndarray = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    return result


_FUNCTIONS: dict[Activation, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "identity": lambda logits: logits,
}


def scores(logits: np.ndarray, head: Head) -> np.ndarray:
    """What a head's activation makes of logits ``[..., labels]``."""
    return _FUNCTIONS[head.function(logits.shape[-1])](logits)


def check_threshold(threshold: float) -> None:
    """:class:`InputError` for a threshold that is no probability."""
    if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise InputError(f"threshold must lie between 0 and 1, found {threshold!r}")


def prediction(logits: np.ndarray, head: Head, *, threshold: float = THRESHOLD) -> Prediction:
    """What one row of logits ``[labels]`` says, by the kind of its head.

    Args:
        logits: The head's outputs.
        head: Their names, and what they mean.
        threshold: The probability above which a label of a multi-label head is chosen.

    Raises:
        InputError: There are more or fewer labels than logits.
    """
    width = logits.shape[-1]
    names = head.names(width)
    if len(names) != width:
        raise InputError(f"{width} logits but {len(names)} labels: {', '.join(names)}")
    wide = logits.astype(np.float64)
    found = scores(wide, head)
    by_name = {name: float(score) for name, score in zip(names, found, strict=True)}
    kind = head.kind(width)
    if kind == "regression":
        raw = {name: float(value) for name, value in zip(names, wide, strict=True)}
        return Score(names[0], float(found[0]), {}, values=by_name, logits=raw)
    best = int(found.argmax())
    if kind == "single_label_classification":
        return Prediction(names[best], float(found[best]), by_name)
    order = np.argsort(-found, kind="stable")
    chosen = tuple(names[int(place)] for place in order if found[place] > threshold)
    return MultiLabelPrediction(names[best], float(found[best]), by_name, labels=chosen)
