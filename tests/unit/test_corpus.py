"""edgepeft.train: reading rows for language models, splitting, packing, standard errors. No model, no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.errors import DataError, InputError
from edgepeft.train.corpus import Columns, read_corpus
from edgepeft.train.encode import Tokens, limit, pack, split
from edgepeft.train.perplexity import change, summarize
from edgepeft.train.task import choose_task


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **names: str) -> Any:
    return read_corpus(path, Columns(**names))[0]


def tokens(length: int, group: str, learnt: int | None = None) -> Tokens:
    mask = np.zeros(length, dtype=bool)
    mask[1 if learnt is None else length - learnt :] = True
    return Tokens(np.arange(length, dtype=np.int32), mask, group)


def test_the_columns_tell_the_kind(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert read(write(tmp_path / "a.jsonl", {"messages": chat})).kind == "messages"
    found = read(write(tmp_path / "b.jsonl", {"prompt": "hi", "completion": "ho", "text": "x"}))
    assert (found.kind, found.rows[0].turns) == ("completion", (("user", "hi"), ("assistant", "ho")))
    assert found.rows[0].where == f"{tmp_path / 'b.jsonl'}, line 1"
    assert read(write(tmp_path / "c.jsonl", {"text": "x"})).rows[0].turns == (("text", "x"),)
    (tmp_path / "d.csv").write_text('q,a\nhi,"ho, ho"\n')
    assert read(tmp_path / "d.csv", prompt="q", completion="a").rows[0].turns[1] == ("assistant", "ho, ho")


def test_text_files_and_folders_of_them(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c.csv"):
        (tmp_path / name).write_text(f"the text of {name}")
    assert [row.turns[0][1] for row in read(tmp_path / "b.txt").rows] == ["the text of b.txt"]
    assert [row.turns[0][1] for row in read(tmp_path).rows] == ["the text of a.md", "the text of b.txt"]
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"b\.txt is empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "a", "answer": "b"},
            r"line 2: nothing to train.*columns question, answer\. Expected 'prompt' and",
        ),
        ({"completion": "b"}, "columns completion. Expected"),
        ({"prompt": "", "completion": "b"}, "line 2: 'prompt' is empty"),
        ({"prompt": "a", "completion": " \n"}, "line 2: 'completion' is empty"),
        ({"prompt": "a", "completion": 3}, "'completion' must be a string, found int 3"),
        ({"text": None}, "'text' must be a string, found NoneType None"),
        ({"text": "  "}, "line 2: 'text' is empty"),
        ({"messages": "hi"}, r"'messages' must be a list such as .*found str 'hi'"),
        ({"messages": []}, "must be a list such as"),
        ({"messages": ["hi"]}, "message 1 must have 'role' and 'content', found str 'hi'"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 1 has the role 'bot'; known are assistant"),
        (
            {"messages": [{"role": "assistant", "content": None}]},
            r"message 1 \(assistant\) must be text, found NoneType",
        ),
        ({"messages": [{"role": "assistant", "content": ""}]}, r"message 1 \(assistant\) must be text, found str ''"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no message has the role 'assistant'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_later_row_without_the_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a", "text": "b"})
    with pytest.raises(DataError, match="line 2: no column 'completion'; this row has: prompt, text"):
        read(path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="has no data rows"):
        read(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="cannot read data file"):
        read(tmp_path / "none.jsonl")


def test_split_keeps_groups_whole_and_bounds_the_tokens() -> None:
    sequences = [tokens(11, f"g{i // 3}") for i in range(90)]  # 30 groups of 30 targets
    train, held = split(sequences, fraction=0.2, max_tokens=10_000, seed=0, source="x")
    assert (len(train), len(held)) == (72, 18)
    assert not {s.group for s in train} & {s.group for s in held}
    assert split(sequences, fraction=0.2, max_tokens=10_000, seed=0, source="x") == (train, held)
    assert split(sequences, fraction=0.2, max_tokens=10_000, seed=1, source="x")[1] != held
    assert len(split(sequences, fraction=0.2, max_tokens=70, seed=0, source="x")[1]) == 6
    # One group at least, however small the fraction and the bound.
    assert len(split(sequences, fraction=0.001, max_tokens=1, seed=0, source="x")[1]) == 3
    with pytest.raises(DataError, match="only one distinct prompt or text"):
        split(sequences[:3], fraction=0.5, max_tokens=100, seed=0, source="x")
    with pytest.raises(InputError, match="between 0 and 1"):
        split(sequences, fraction=1.0, max_tokens=100, seed=0, source="x")


def test_limit_draws_within_the_bound() -> None:
    sequences = [tokens(11, str(i)) for i in range(20)]
    assert len(limit(sequences, 55, seed=0)) == 5
    assert limit(sequences, 55, seed=0) != limit(sequences, 55, seed=1)
    assert limit(sequences, 1000, seed=0) == sequences
    assert len(limit(sequences, 1, seed=0)) == 1


def test_pack_loses_nothing_and_fits_best() -> None:
    lengths = [7, 3, 5, 10, 2, 8, 1, 4]
    sequences = [tokens(length, str(i)) for i, length in enumerate(lengths)]
    blocks = pack(sequences, 10)
    assert sorted(s.group for block in blocks for s in block) == sorted(str(i) for i in range(8))
    assert all(sum(len(s.ids) for s in block) <= 10 for block in blocks)
    assert len(blocks) == 4  # 40 tokens, no room wasted


def test_perplexity_and_its_error_against_hand_computation() -> None:
    """Two groups: 2 nats over 2 tokens and 6 over 2. The mean is 2; residuals -2 and 2; sqrt(2 * 8) / 4 = 1."""
    found = summarize({"a": (2.0, 2), "b": (6.0, 2)})
    assert (found.nll, found.tokens, found.groups) == (2.0, 4, 2)
    assert found.perplexity == pytest.approx(math.exp(2))
    assert found.nll_standard_error == pytest.approx(1.0)
    assert found.standard_error == pytest.approx(math.exp(2))
    assert summarize({"a": (2.0, 2)}).standard_error is None


def test_the_error_of_a_change_is_paired() -> None:
    """Both groups gain one nat a token, from very different levels: the change has no error, the levels have."""
    before, after = {"a": (2.0, 2), "b": (9.0, 3)}, {"a": (0.0, 2), "b": (6.0, 3)}
    found = change(before, after)
    assert found.nll == pytest.approx(-1)
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert (summarize(before).nll_standard_error or 0) > 0.5


def test_standard_error_agrees_with_resampling() -> None:
    """Against a bootstrap over groups of 400 draws: within a fifth, which is what 400 groups allow."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 40, size=400)
    losses = {str(i): (float(generator.gamma(3.0, 0.5) * n), int(n)) for i, n in enumerate(counts)}
    values, sizes = np.array([v for v, _ in losses.values()]), np.array([n for _, n in losses.values()])
    draws = generator.integers(0, 400, size=(400, 400))
    bootstrap = (values[draws].sum(axis=1) / sizes[draws].sum(axis=1)).std()
    assert summarize(losses).nll_standard_error == pytest.approx(bootstrap, rel=0.2)


def test_the_task_is_told_by_the_columns(tmp_path: Path) -> None:
    columns = Columns()
    labelled = write(tmp_path / "a.jsonl", {"text": "x", "label": "y"})
    answered = write(tmp_path / "b.jsonl", {"prompt": "x", "completion": "y"})
    (tmp_path / "c.txt").write_text("x")
    assert choose_task("unused", labelled, label="label", columns=columns) == "text-classification"
    assert choose_task("unused", answered, label="label", columns=columns) == "text-generation"
    assert choose_task("unused", tmp_path / "c.txt", label="label", columns=columns) == "text-generation"
    assert choose_task("unused", tmp_path, label="label", columns=columns) == "text-generation"
