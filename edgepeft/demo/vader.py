"""The demo's three data sets, made of the VADER ground truth (Hutto and Gilbert, ICWSM 2014).

They differ in label count and domain, so that an adapter swapped for the wrong one shows: ``reviews`` (polarity of
Amazon sentences), ``movies`` (polarity of movie sentences) and ``register`` (which of four sources a sentence is from).
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..json_text import json_text
from .assets import vader

#: File of each source, by the label that ``register`` gives its sentences.
SOURCES = {
    "tweets": "tweets_GroundTruth.txt",
    "reviews": "amazonReviewSnippets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
#: A sentence has a polarity where its mean rating (-4 … 4, by at least 20 people) is this far from 0.
POLAR_RATING = 1.0
#: Share of the documents that no adapter may see in training, in percent.
HELDOUT_PERCENT = 35
TRAIN_ROWS = 1000
HELDOUT_ROWS = 500


@dataclass(frozen=True)
class DatasetFiles:
    """The two JSONL files of one data set (keys ``text`` and ``label``) and what is in them."""

    name: str
    train: Path
    heldout: Path
    labels: tuple[str, ...]
    train_rows: int
    heldout_rows: int


@dataclass(frozen=True)
class Sentence:
    """One rated sentence; ``heldout`` holds for all sentences of a document, in every data set."""

    source: str
    text: str
    rating: float
    heldout: bool
    order: str

    @property
    def polarity(self) -> str | None:
        """``"positive"``, ``"negative"``, or ``None`` where the raters saw neither."""
        if abs(self.rating) < POLAR_RATING:
            return None
        return "positive" if self.rating > 0 else "negative"


def normalize(text: str) -> str:
    """``text`` as duplicates are compared: entities decoded, case folded, letters and digits of any script only."""
    folded = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    return re.sub(r"[\W_]+", " ", folded).strip()


def read_sentences(folder: Path) -> list[Sentence]:
    """Every distinct sentence of the four ground-truth files in ``folder``, in an order that only the texts decide.

    Of sentences that are equal after :func:`normalize` the first is kept; those found in two sources are dropped, since
    ``register`` could not label them. The split is by document (an Amazon review, a news article), so neighbours of a
    held-out sentence are held out too. Raises :class:`DataError` with the line number for a row that is not
    ``id<TAB>rating<TAB>text``.
    """
    sentences: dict[str, Sentence] = {}
    ambiguous: set[str] = set()
    for source, file in SOURCES.items():
        for document, rating, text in _rows(folder / file):
            key = normalize(text)
            if not key:
                continue
            if key in sentences:
                if sentences[key].source != source:
                    ambiguous.add(key)
                continue
            heldout = int(_digest(f"{source}:{document}")[:8], 16) % 100 < HELDOUT_PERCENT
            sentences[key] = Sentence(source, html.unescape(text), rating, heldout, _digest(key))
    return sorted((s for key, s in sentences.items() if key not in ambiguous), key=lambda s: s.order)


def write_datasets(folder: str | Path, *, ground_truth: str | Path | None = None) -> dict[str, DatasetFiles]:
    """Write ``<name>.train.jsonl`` and ``<name>.heldout.jsonl`` for ``reviews``, ``movies`` and ``register``.

    ``ground_truth`` is the folder of the four source files; without it they are fetched (:func:`assets.vader`). The
    same input gives the same bytes. At most 1,000 training and 500 held-out rows each; ``register`` has equally many of
    each label. No normalised text, and no document, is in training of one data set and held out of any other.
    """
    sentences = read_sentences(Path(ground_truth) if ground_truth is not None else vader())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    labelled = {
        "reviews": [(s, s.polarity) for s in sentences if s.source == "reviews" and s.polarity],
        "movies": [(s, s.polarity) for s in sentences if s.source == "movies" and s.polarity],
    }
    rows = {
        name: {heldout: [(s.text, label) for s, label in pairs if s.heldout is heldout] for heldout in (False, True)}
        for name, pairs in labelled.items()
    }
    rows["register"] = {False: _balanced(sentences, False, TRAIN_ROWS), True: _balanced(sentences, True, HELDOUT_ROWS)}
    written = {}
    for name, split in rows.items():
        train, heldout = split[False][:TRAIN_ROWS], split[True][:HELDOUT_ROWS]
        files = (folder / f"{name}.train.jsonl", folder / f"{name}.heldout.jsonl")
        _write(files[0], train)
        _write(files[1], heldout)
        labels = tuple(sorted({label for _, label in train}))
        written[name] = DatasetFiles(name, *files, labels, len(train), len(heldout))
    return written


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(path: Path) -> Iterable[tuple[str, float, str]]:
    """Document, mean rating and text of each row; a document's sentences are numbered ``<document>_<sentence>``."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read VADER ground truth {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        try:
            identifier, rating, text = fields
            yield identifier.partition("_")[0], float(rating), text.strip()
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: expected id, rating and text with tabs between: {error}"
            ) from error


def _balanced(sentences: Sequence[Sentence], heldout: bool, limit: int) -> list[tuple[str, str]]:
    """Up to ``limit`` rows of (text, source), as many of each source, in the sentences' order."""
    mine = {source: [s for s in sentences if s.heldout is heldout and s.source == source] for source in SOURCES}
    each = min(limit // len(SOURCES), *(len(rows) for rows in mine.values()))
    chosen = sorted((s for rows in mine.values() for s in rows[:each]), key=lambda s: s.order)
    return [(s.text, s.source) for s in chosen]


def _write(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    lines = (json_text({"text": text, "label": label}, indent=None) for text, label in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
