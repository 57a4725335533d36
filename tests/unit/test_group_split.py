"""``--split-by``: validation rows of groups that training never saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepeft.data import Examples
from edgepeft.errors import DataError, InputError
from edgepeft.train.group_split import group_split, read_groups
from edgepeft.train.source import load_split


def rows(count: int) -> Examples:
    return Examples(tuple(f"text {n}" for n in range(count)), tuple("ab"[n % 2] for n in range(count)))


def test_groups_stay_whole_and_labels_on_both_sides() -> None:
    examples = rows(100)
    groups = [f"site {n // 10}" for n in range(100)]
    train, held = group_split(examples, groups, 0.2, 0, stratified=True)
    assert len(held) == 20
    assert len(train) == 80
    of = dict(zip(examples.texts, groups, strict=True))
    assert not {of[text] for text in train.texts} & {of[text] for text in held.texts}
    assert set(train.labels or ()) == set(held.labels or ()) == {"a", "b"}
    assert group_split(examples, groups, 0.2, 0, stratified=True)[1] == held
    assert group_split(examples, groups, 0.2, 1, stratified=True)[1] != held


def test_an_order_is_looked_for_in_which_every_label_has_rows() -> None:
    """The rare label is in three groups of ten; one of them must be held out, and one trained on."""
    labels = ["a"] * 100
    for row in (3, 4, 13, 14, 23, 24):
        labels[row] = "b"
    examples = Examples(tuple(map(str, range(100))), tuple(labels))
    for seed in range(5):
        train, held = group_split(examples, [str(n // 10) for n in range(100)], 0.1, seed, stratified=True)
        assert "b" in (held.labels or ())
        assert "b" in (train.labels or ())


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match=r"all 8 rows are of the group 'x'"):
        group_split(rows(8), ["x"] * 8, 0.2, 0, stratified=True)
    with pytest.raises(DataError, match="no choice of whole groups leaves 2 rows of every label"):
        group_split(rows(8), ["ab"[n % 2] for n in range(8)], 0.5, 0, stratified=True)
    with pytest.raises(InputError, match="fraction must lie between 0 and 1"):
        group_split(rows(8), ["x", "y"] * 4, 1.5, 0, stratified=False)
    with pytest.raises(InputError, match="rows were given as objects"):
        read_groups(rows(8), "site")


def test_from_a_file(tmp_path: Path) -> None:
    """The same text in two groups stays on the side that is measured."""
    file = tmp_path / "d.jsonl"
    lines = [{"text": f"text {n % 45}", "label": "ab"[n % 2], "site": n // 10} for n in range(100)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"fraction": 0.2, "text": "text", "label": "label", "pair": None, "seed": 0}
    split = load_split(file, validation=None, split_by="site", **options)
    assert len(split.validation) == 20
    assert not set(split.train.texts) & set(split.validation.texts)
    assert any("had the same text as a validation row" in said for said in split.warnings)
    with pytest.raises(DataError, match=r"line 1: no column 'sites' .* did you mean 'site'"):
        load_split(file, validation=None, split_by="sites", **options)
    with pytest.raises(InputError, match="leave one of them out"):
        load_split(file, validation=file, split_by="site", **options)
