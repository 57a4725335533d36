"""What is wrong with training data: said before torch is imported, counted, removed or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.data import Examples
from edgepeft.errors import DataError
from edgepeft.train.gain import Gain, gain_warning, likelihood_gain, majority_warning, paired_gain
from edgepeft.train.leaks import contradictions, without_leaks
from edgepeft.train.source import load_split


def write(path: Path, rows: list[tuple[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def many(count: int, word: str = "row") -> list[tuple[str, str]]:
    return [(f"{word} {i}", "ab"[i % 2]) for i in range(count)]


def split(data: Path, validation: Path | None = None) -> Any:
    options = {"text": "text", "label": "label", "pair": None, "seed": 0}
    return load_split(data, validation=validation, fraction=0.1, **options)


@pytest.mark.parametrize(
    ("rows", "held", "says"),
    [
        ([("x", "a"), ("y", "a"), ("z", "a")], None, "all 3 rows have the label 'a'"),
        ([*many(20), ("only", "c")], None, r"label 'c' has 1 distinct row\(s\).*: 4 are needed"),
        ([*many(20), ("x", "")], None, "line 21: the label is empty"),
        (many(20), many(6, "other")[:1] * 3, r"label\(s\) \['b'\] have fewer than 2"),
        (many(20), [("u", "a"), ("v", "b"), ("w", "c")], r"label\(s\) \['c'\] are not among"),
        (many(20), many(20), "20 of the 20 training rows .* same text as a validation row"),
    ],
    ids=["one-class", "tiny", "empty-label", "missing-label", "unseen-label", "same-file"],
)
def test_refusals_come_before_torch(tmp_path: Path, rows: Any, held: Any, says: str) -> None:
    """Through the stage function in a fresh process, where importing torch would show."""
    data = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError, match=says):
        split(data, None if held is None else write(tmp_path / "v.jsonl", held))
    call = f"{str(data)!r}, {str(tmp_path / 'out')!r}, validation={held and str(tmp_path / 'v.jsonl')!r}"
    code = (
        "import sys\nfrom edgepeft.errors import DataError\nfrom edgepeft.train import train_adapter\n"
        f"try:\n    train_adapter('none', {call})\n"
        "except DataError:\n    print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("model", ["./none", "nobody/nothing"])
def test_a_base_that_is_not_there_is_said_before_torch(model: str, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", many(20))
    code = (
        "import sys\nfrom edgepeft.errors import InputError\nfrom edgepeft.pipeline import export\n"
        "from edgepeft.train import train_adapter\n"
        f"for call in (lambda: export({model!r}, {{}}, {str(tmp_path / 'out')!r}),\n"
        f"             lambda: train_adapter({model!r}, {str(data)!r}, {str(tmp_path / 'out')!r})):\n"
        "    try:\n        call()\n    except InputError as error:\n"
        "        print(str(error).split(' that can')[0], sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    says = f"base model {model!r} is neither a folder with config.json nor a Hugging Face id"
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(says) and line.endswith("[]") for line in lines), lines


def test_rows_of_both_sides_are_counted_and_not_trained_on(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", many(20))
    held = write(tmp_path / "v.jsonl", [("ROW  3", "b"), ("row 4 ", "a"), *many(6, "other")])
    found = split(data, held)
    assert (len(found.train), len(found.validation)) == (18, 8)
    assert not {"row 3", "row 4"} & set(found.train.texts)
    assert "2 training rows had the same text as a validation row and were not trained on" in found.warnings


def test_a_pair_is_a_leak_only_as_a_whole() -> None:
    train = Examples(("q", "q"), ("a", "b"), ("one", "two"))
    held = Examples(("Q",), ("a",), ("TWO",))
    kept, leaked = without_leaks(train, held)
    assert (kept.pairs, leaked) == (("one",), 1)


def test_the_same_text_but_for_case_stays_on_one_side(tmp_path: Path) -> None:
    rows = [(text, label) for text, label in many(40) for text in (text, text.upper(), f" {text}")]
    found = split(write(tmp_path / "d.jsonl", rows))
    sides = [{text.strip().lower() for text in side.texts} for side in (found.train, found.validation)]
    assert not sides[0] & sides[1]
    assert len(found.train) + len(found.validation) == 120


def test_contradictions_and_empty_texts_are_counted(tmp_path: Path) -> None:
    assert contradictions(Examples(("x", "X ", "y"), ("a", "b", "a")), ("a", "b", "a")) == 1
    rows = [*many(40), ("clear", "a"), ("Clear", "b"), ("", "a"), ("  ", "a")]
    held = write(tmp_path / "v.jsonl", many(8, "other"))
    assert [warning.partition(";")[0] for warning in split(write(tmp_path / "d.jsonl", rows), held).warnings] == [
        "2 of 44 training texts are empty",
        "1 text(s) occur in training with more than one label",
    ]


def test_a_gain_is_called_one_only_beyond_its_interval() -> None:
    before = np.array([1.0] * 50 + [0.0] * 50)
    better = np.array([1.0] * 80 + [0.0] * 20)
    slightly = np.array([1.0] * 52 + [0.0] * 48)
    assert paired_gain(before, better, "accuracy").verdict == "better"
    assert paired_gain(better, before, "accuracy").verdict == "worse"
    assert paired_gain(before, slightly, "accuracy").verdict == "no difference shown"
    errors = np.linspace(0.5, 1.5, 60)
    assert paired_gain(errors, errors - 0.2, "mean_error").verdict == "better"
    assert paired_gain(errors, errors + 0.2, "mean_error").verdict == "worse"


def test_what_is_said_of_a_gain() -> None:
    assert gain_warning(Gain("accuracy", "higher", 0.1, 0.05, 0.15), 100) is None
    assert "worse than the base (accuracy -0.100" in (
        gain_warning(Gain("accuracy", "higher", -0.1, -0.15, -0.05), 9) or ""
    )
    assert "within the noise" in (gain_warning(Gain("accuracy", "higher", 0.1, -0.05, 0.25), 9) or "")
    assert likelihood_gain(-0.2, 0.05).verdict == "better"
    assert likelihood_gain(0.2, 0.05).verdict == "worse"
    assert likelihood_gain(-0.2, 0.15).verdict == likelihood_gain(-9.0, None).verdict == "no difference shown"


def test_always_the_same_answer_is_no_skill() -> None:
    held = ["a"] * 70 + ["b"] * 30
    always = np.array([1.0] * 70 + [0.0] * 30)
    said = majority_warning(always, ["a", "a", "b"], held)
    assert said is not None
    assert "always answering 'a' (0.700)" in said
    assert majority_warning(np.ones(100), ["a", "a", "b"], held) is None
