"""Several sources: shares by temperature, which rows an epoch has, whose validation rows are whose, and every refusal."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.data import Examples
from edgepeft.errors import DataError, InputError
from edgepeft.train.mixing import Mixture, check_temperature, mixture_of
from edgepeft.train.source import load_rows, load_split


def test_shares_follow_from_the_temperature() -> None:
    """By hand: 90 and 10 rows at 2 are as 9.49 to 3.16, three to one."""
    sources = [0] * 90 + [1] * 10
    assert Mixture(sources, 2.0, 0).shares == pytest.approx([0.75, 0.25])
    assert Mixture(sources, 1.0, 0).shares == pytest.approx([0.9, 0.1])
    assert Mixture(sources, 1e6, 0).shares == pytest.approx([0.5, 0.5], abs=1e-5)
    assert Mixture(sources, 0.5, 0).shares == pytest.approx([8100 / 8200, 100 / 8200])
    assert mixture_of(sources, 1.0, 0) is None
    assert mixture_of([0] * 9, 5.0, 0) is None


def test_an_epoch_is_as_long_as_all_rows_and_holds_each_source_as_often_as_its_share() -> None:
    generator = np.random.default_rng(3)
    for _ in range(30):
        sizes = generator.integers(1, 60, size=int(generator.integers(2, 6)))
        sources = generator.permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()
        mixture = Mixture(sources, float(generator.uniform(1, 20)), seed=1)
        drawn = [sources[place] for place in mixture.epoch(int(generator.integers(5)))]
        assert len(drawn) == len(sources) == len(mixture)
        counts = np.bincount(drawn, minlength=len(sizes))
        assert (np.abs(counts - mixture.shares * len(sources)) < 1).all()
        assert mixture.weights.sum() == pytest.approx(len(sources))
        assert [mixture.weights[sources.index(source)] for source in range(len(sizes))] == pytest.approx(
            (mixture.shares * len(sources) / sizes).tolist()
        )


def test_no_row_is_left_out_for_good() -> None:
    """In each source the rows have been drawn equally often but for one, however many epochs there were."""
    sources = [0] * 83 + [1] * 7 + [2] * 10
    mixture = Mixture(sources, 4.0, seed=2)
    seen: Counter[int] = Counter()
    for epoch in range(7):
        seen.update(mixture.epoch(epoch))
        for source in range(3):
            mine = [seen[place] for place in range(100) if sources[place] == source]
            assert max(mine) - min(mine) <= 1
    assert min(seen.values()) >= 2


def test_an_epoch_follows_from_seed_and_number_alone() -> None:
    sources = [0] * 40 + [1] * 5
    once, again = Mixture(sources, 3.0, 7), Mixture(sources, 3.0, 7)
    last = once.epoch(4)
    assert [again.epoch(number) for number in range(5)][4] == last
    assert Mixture(sources, 3.0, 8).epoch(4) != last != once.epoch(3)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_none(wrong: float) -> None:
    with pytest.raises(InputError, match="finite number above 0"):
        check_temperature(wrong, 2)


def write(path: Path, count: int, start: int = 0, labels: tuple[str, ...] = ("down", "up")) -> Path:
    rows = [{"text": f"text {start + i}", "label": labels[i % len(labels)]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split(data: Any, validation: Any = None, **options: Any) -> Any:
    settings = {"fraction": 0.2, "text": "text", "label": "label", "pair": None, "seed": 0, **options}
    return load_split(data, validation=validation, **settings)


def test_each_source_holds_out_rows_of_its_own(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 60), write(tmp_path / "b.jsonl", 20, start=1000)
    found = split([a, b], temperature=2.0)
    assert found.sources == (str(a), str(b))
    assert Counter(found.train_sources) == {0: 48, 1: 16}
    assert Counter(found.held_sources) == {0: 12, 1: 4}
    for rows, sources in ((found.train, found.train_sources), (found.validation, found.held_sources)):
        assert [int(text.split()[1]) >= 1000 for text in rows.texts] == [source == 1 for source in sources]
    alone = split(a)
    assert (alone.sources, alone.train_sources, alone.held_sources) == ((), (), ())
    assert list(found.validation.texts)[:12] == list(alone.validation.texts)


def test_whose_validation_rows_are_whose(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 40), write(tmp_path / "b.jsonl", 20, start=1000)
    held_a, held_b = write(tmp_path / "ha.jsonl", 8, start=2000), write(tmp_path / "hb.jsonl", 6, start=3000)
    assert Counter(split([a, b], [held_a, held_b]).held_sources) == {0: 8, 1: 6}
    common = split([a, b], held_a)
    assert common.held_sources == (-1,) * 8
    assert len(common.train) == 60
    rows = load_rows([a, b], [held_a, held_b], text="text", label="label", pair=None)
    assert (Counter(rows.train_sources), Counter(rows.held_sources)) == ({0: 40, 1: 20}, {0: 8, 1: 6})
    assert load_rows([a, b], None, text="text", label="label", pair=None).held_sources == ()
    with pytest.raises(InputError, match="given 2 times and --data 1 times"):
        split(a, [held_a, held_b])


def test_what_one_source_holds_out_another_does_not_teach(tmp_path: Path) -> None:
    """Twenty rows of the second stand in the first too: those that one holds out are taken from the other's training rows."""
    a, b = write(tmp_path / "a.jsonl", 60), write(tmp_path / "b.jsonl", 60, start=40)
    found = split([a, b])
    held = set(found.validation.texts)
    assert not held & set(found.train.texts)
    # Both draw their own, so a row in both is held out of one, of the other, of both or of none.
    twice = {f"text {i}" for i in range(40, 60)}
    assert len(found.train) < 96
    assert any("had the same text as a validation row" in warning for warning in found.warnings)
    assert held & twice


def test_labels_that_differ_are_named(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", 40)
    b = write(tmp_path / "b.jsonl", 40, start=1000, labels=("down", "neutral"))
    said = r"a\.jsonl has 'up', which .*b\.jsonl lacks; .*b\.jsonl has 'neutral', which .*a\.jsonl lacks"
    with pytest.raises(DataError, match=said):
        split([a, b])
    with pytest.raises(DataError, match="has 'up', which"):
        load_rows([a, b], None, text="text", label="label", pair=None)
    sets = [Examples(tuple(f"t{i}{n}" for i in range(20)), ("x", "x,y") * 10) for n in range(2)]
    more = Examples(tuple(f"u{i}" for i in range(20)), ("x", "z") * 10)
    assert split(sets, problem_type="multi_label_classification").labels == ("x", "y")
    with pytest.raises(DataError, match="rows 1 has 'y', which rows 2 lacks; rows 2 has 'z'"):
        split([sets[0], more], problem_type="multi_label_classification")


def test_what_is_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 40), write(tmp_path / "b.jsonl", 40, start=1000)
    with pytest.raises(InputError, match="is given twice"):
        split([a, tmp_path / "." / "a.jsonl"])
    with pytest.raises(InputError, match="there is one; repeat --data"):
        split(a, temperature=2.0)
    with pytest.raises(InputError, match="no rows to train on"):
        split([])
    with pytest.raises(InputError, match="--split-by holds out groups of one source"):
        split([a, b], split_by="label")
    pairs = Examples(tuple(f"p{row}" for row in range(40)), ("down", "up") * 20, ("q",) * 40)
    with pytest.raises(DataError, match="--pair must be there in all or none"):
        load_rows([load_split_rows(a), pairs], None, text="text", label="label", pair=None)


def load_split_rows(path: Path) -> Examples:
    from edgepeft.data import read_examples

    return read_examples(path)
