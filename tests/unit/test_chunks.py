"""Rows in chunks: joined as if at once, told, kept, and gone on with."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgepeft.data import Examples
from edgepeft.validate.chunks import AnswerFile, Chunks, rows_hash


def squares(places: range) -> dict[str, object]:
    return {"n": np.array([[p * p, -p] for p in places], np.float32), "texts": [f"«{p}»\0" for p in places]}


def test_chunks_join_to_what_one_run_gives_and_say_how_far_they_are() -> None:
    told: list[tuple[int, int]] = []
    found = Chunks(size=4, progress=lambda *step: told.append(step)).run(10, "x", squares)
    whole = squares(range(10))
    assert np.array_equal(found["n"], whole["n"])  # type: ignore[arg-type]
    assert found["texts"] == whole["texts"]
    assert told == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("broken", ["interrupted", "rubbish", "cut"])
def test_a_run_goes_on_after_what_is_kept(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "deep" / "answers.db"
    asked: list[int] = []

    def stops(places: range) -> dict[str, object]:
        asked.append(places.start)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return squares(places)

    with pytest.raises(KeyboardInterrupt):
        Chunks(AnswerFile(path), "k", 10).run(65, "x", stops)
    assert asked == [0, 10, 20, 30]
    if broken == "rubbish":
        path.write_bytes(b"not a database" * 100)
    elif broken == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    asked.clear()
    kept = AnswerFile(path)

    def counted(places: range) -> dict[str, object]:
        asked.append(places.start)
        return squares(places)

    found = Chunks(kept, "k", 10).run(65, "x", counted)
    assert np.array_equal(found["n"], squares(range(65))["n"])  # type: ignore[arg-type]
    assert found["texts"] == squares(range(65))["texts"]
    assert asked == ([30, 40, 50, 60] if broken == "interrupted" else [0, 10, 20, 30, 40, 50, 60])
    asked.clear()
    Chunks(kept, "other", 10).run(65, "x", counted)
    Chunks(kept, "k", 10).run(65, "y", counted)
    assert len(asked) == 14, "other bundles, rows or answers have nothing in common"
    kept.remove()
    assert not path.exists()


def test_where_nothing_can_be_kept_the_run_ends_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = Chunks(AnswerFile(tmp_path / "file" / "answers.db"), "k", 10).run(30, "x", squares)
    assert len(found["n"]) == 30


def test_rows_are_known_by_what_is_run_of_them() -> None:
    one = Examples(("a", "bc"), ("yes", "no"))
    assert rows_hash(one) == rows_hash(Examples(("a", "bc"), ("no", "no"), source="other.csv"))
    assert (
        len({rows_hash(each) for each in (one, Examples(("ab", "c"), None), Examples(("a", "bc"), None, ("a", "bc")))})
        == 3
    )


def test_memory_does_not_grow_with_what_a_chunk_needs() -> None:
    """200,000 rows, each of which takes 4 kB while it is run: one chunk is held, not all (800 MB)."""

    def run(places: range) -> dict[str, object]:
        needed = np.zeros((len(places), 1024), np.float32)
        return {"logits": needed[:, :2].copy()}

    tracemalloc.start()
    found = Chunks().run(200_000, "logits", run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["logits"].shape == (200_000, 2)
    assert peak < 30e6
