"""Rows with labels as an adapter answers them, in the form that metrics take: by the task of its head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Head
from ..data import Examples
from ..errors import DataError, InputError
from ..metrics import Kind, Scored
from ..report.answers import expected_answers, row_labels, row_numbers
from ..runtime import View
from ..runtime.predictions import scores
from .chunks import ALONE, Chunks

#: Rows are run sorted by length in batches of this size, so that padding costs little and is still exercised.
BATCH = 32

#: What a row of logits is called, by the kind of its head.
_KINDS: dict[str, Kind] = {
    "single_label_classification": "label",
    "multi_label_classification": "labels",
    "regression": "numbers",
}


def class_scored(
    logits: np.ndarray, examples: Examples, head: Head, name: str | None, variant: str
) -> tuple[Scored, ...]:
    """Logits ``[rows, labels]`` of a classifier, a regression or a ranker as rows to score.

    Numbers whose rows are pairs are rankings too: of the second texts, by those rows that share their first.
    """
    width = logits.shape[-1]
    labels = expected_answers(examples, head, width)
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    outputs = np.where(finite, scores(np.where(finite, logits, 0.0).astype(np.float64), head), np.nan)
    data, kind = Path(examples.source).name, _KINDS[head.kind(width)]
    found = Scored(name, variant, data, kind, labels, outputs, head.names(width))
    if kind == "numbers" and width == 1 and examples.pairs is not None:
        return found, *_ranked(examples, labels[:, 0], outputs[:, 0], name, variant, data)
    return (found,)


def _ranked(
    examples: Examples, labels: np.ndarray, outputs: np.ndarray, name: str | None, variant: str, data: str
) -> tuple[Scored, ...]:
    """Rankings, where a first text stands with several second ones."""
    queries: dict[str, list[int]] = {}
    for row, text in enumerate(examples.texts):
        queries.setdefault(text, []).append(row)
    places = [rows for rows in queries.values() if len(rows) > 1]
    if not places:
        return ()
    return (
        Scored(
            name, variant, data, "ranking", _lists([labels[rows] for rows in places]), _lists([outputs[rows] for rows in places])
        ),
    )  # fmt: skip


def _lists(rows: Sequence[Any]) -> np.ndarray:
    """An array ``[rows]`` of lists, however long each is."""
    found = np.empty(len(rows), dtype=object)
    for place, row in enumerate(rows):
        found[place] = row
    return found


def similarity_scored(view: View, examples: Examples, name: str | None, chunks: Chunks = ALONE) -> tuple[Scored, ...]:
    """How alike the embeddings of pairs are (cosine), against labels that are numbers.

    Raises:
        InputError: The rows are no pairs.
    """
    if examples.pairs is None:
        raise InputError(
            f"{examples.source}: embeddings are judged on pairs of texts with a number for how alike they are (or how relevant the "
            "second is); name the column of the second text with --pair"
        )
    labels = np.array([row_numbers(examples, row, 1) for row in range(len(examples))])
    pairs = examples.pairs

    def cosines(places: range) -> dict[str, np.ndarray]:
        one, other = (
            view.embed([texts[place] for place in places], normalize=True).astype(np.float64)
            for texts in (examples.texts, pairs)
        )
        return {"cosine": (one * other).sum(axis=1)}

    outputs = chunks.run(len(examples), "cosine", cosines)["cosine"]
    data = Path(examples.source).name
    found = Scored(name, view.variant, data, "similarity", labels, outputs[:, None])
    return found, *_ranked(examples, labels[:, 0], outputs, name, view.variant, data)


def tags_scored(view: View, examples: Examples, name: str | None, chunks: Chunks = ALONE) -> tuple[Scored, ...]:
    """The tag of each word: that of its first token, as token classifiers are trained.

    Words are what white space separates; a word that was cut off has the tag ``O``.
    """
    head = view.active.head
    expected = expected_tags(examples, head)

    def answer(places: range) -> dict[str, list[list[str]]]:
        texts = [examples.texts[place] for place in places]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        answered: list[list[str]] = [[] for _ in order]
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            logits = view.forward(view.encode([texts[row] for row in rows]))["logits"]
            for place, row in enumerate(rows):
                answered[row] = _word_tags(view, texts[row], view.active.logits_of(place, logits[place]), head)
        return {"tags": answered}

    answered = chunks.run(len(examples), "tags", answer)["tags"]
    return (
        Scored(name, view.variant, Path(examples.source).name, "tags", _lists(expected), _lists(answered)),
    )  # fmt: skip


def _word_tags(view: View, text: str, logits: np.ndarray, head: Head) -> list[str]:
    names = head.names(logits.shape[-1])
    offsets = view.encoder.encoding(text).offsets
    tags = []
    for word in re.finditer(r"\S+", text):
        first = next((i for i, (begin, end) in enumerate(offsets) if begin < word.end() and end > word.start()), None)
        cut = first is None or not np.isfinite(logits[first]).all()
        tags.append("O" if cut else names[int(logits[first].argmax())])
    return tags


def expected_tags(examples: Examples, head: Head) -> list[list[str]]:
    """The tags of each row's words: a JSON list, or tags with white space between.

    Raises:
        DataError: Names the row that has more or fewer tags than words, or a tag that the head does not know.
    """
    if examples.labels is None:
        raise DataError(f"{examples.source} was read without labels")
    names = head.labels
    found = []
    for row, text in enumerate(examples.texts):
        label = examples.labels[row]
        tags = row_labels(examples, row) if label.startswith("[") else label.split()
        words = len(text.split())
        if len(tags) != words:
            raise DataError(f"{examples.where(row)}: {len(tags)} tags for {words} words; give one for each")
        if names is not None and not set(tags) <= set(names):
            if not all(tag.isdigit() and int(tag) < len(names) for tag in tags):
                unknown = next(tag for tag in tags if tag not in names)
                raise DataError(
                    f"{examples.where(row)}: tag {unknown!r} is not one of the adapter's: {', '.join(names)}"
                )
            tags = [names[int(tag)] for tag in tags]
        found.append(tags)
    return found
