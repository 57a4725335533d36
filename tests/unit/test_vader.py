"""edgepeft.demo.vader on small synthetic ground truth: no leakage, no duplicates, the same bytes each time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from edgepeft.demo.vader import SOURCES, normalize, read_sentences, write_datasets
from edgepeft.errors import DataError


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    folder = tmp_path / "truth"
    folder.mkdir()
    for source, file in SOURCES.items():
        rows = [f"{i // 3}_{i % 3}\t{(-1) ** i * (i % 5) * 0.7}\tThe {source} said {i}." for i in range(180)]
        rows += ["900_1\t2.0\tfound in all FOUR", f"901_1\t2.0\tthe  {source}, said 7!", "902_1\t1.0\t..."]
        (folder / file).write_bytes("\r\n".join([*rows, ""]).encode())
    return folder


def load(path: Path) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for row in map(json.loads, path.read_text().splitlines())]


def test_files_labels_and_counts(truth: Path, tmp_path: Path) -> None:
    written = write_datasets(tmp_path / "out", ground_truth=truth)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"{name}.{split}.jsonl" for name in ("reviews", "movies", "register") for split in ("train", "heldout")
    }
    assert written["reviews"].labels == written["movies"].labels == ("negative", "positive")
    assert written["register"].labels == ("movies", "news", "reviews", "tweets")
    for files in written.values():
        assert files.train_rows == len(load(files.train)) > 0
        assert files.heldout_rows == len(load(files.heldout)) > 0
    assert len(set(Counter(label for _, label in load(written["register"].train)).values())) == 1


def test_nothing_leaks_between_any_two_splits(truth: Path, tmp_path: Path) -> None:
    written = write_datasets(tmp_path, ground_truth=truth).values()
    train = {normalize(text) for files in written for text, _ in load(files.train)}
    heldout = {normalize(text) for files in written for text, _ in load(files.heldout)}
    assert train
    assert not train & heldout
    for files in written:
        texts = [normalize(text) for text, _ in load(files.train)]
        assert len(texts) == len(set(texts))


def test_duplicates_and_texts_of_two_sources_are_dropped(truth: Path) -> None:
    keys = [normalize(s.text) for s in read_sentences(truth)]
    assert len(keys) == len(set(keys)) == 4 * 180
    assert "found in all four" not in keys


def test_a_document_is_on_one_side(truth: Path) -> None:
    sides: dict[tuple[str, int], set[bool]] = {}
    for sentence in read_sentences(truth):
        number = int(sentence.text.rstrip(".").split()[-1])
        sides.setdefault((sentence.source, number // 3), set()).add(sentence.heldout)
    assert {len(side) for side in sides.values()} == {1}


def test_polarity_needs_a_rating_of_one(truth: Path) -> None:
    for sentence in read_sentences(truth):
        expected = None if abs(sentence.rating) < 1 else ("positive" if sentence.rating > 0 else "negative")
        assert sentence.polarity == expected


def test_same_input_same_bytes(truth: Path, tmp_path: Path) -> None:
    first = {
        p.name: p.read_bytes()
        for f in write_datasets(tmp_path / "a", ground_truth=truth).values()
        for p in (f.train, f.heldout)
    }
    second = {
        p.name: p.read_bytes()
        for f in write_datasets(tmp_path / "b", ground_truth=truth).values()
        for p in (f.train, f.heldout)
    }
    assert first == second


def test_normalize() -> None:
    assert normalize("  Good &amp; BAD -- Straße_1 ") == "good bad strasse 1"
    assert normalize("...") == ""


def test_bad_row_and_missing_file(truth: Path) -> None:
    path = truth / SOURCES["news"]
    path.write_text("1_1\t0.5\tfine\n1_2\thigh\tnot a number\n")
    with pytest.raises(DataError, match=r"nytEditorialSnippets_GroundTruth\.txt, line 2"):
        read_sentences(truth)
    path.write_text("1_1\t0.5\n")
    with pytest.raises(DataError, match="line 1"):
        read_sentences(truth)
    path.unlink()
    with pytest.raises(DataError, match="cannot read"):
        read_sentences(truth)
