"""Whether an adapter suffices: conclusions from made-up trials, and tasks that were made for a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_train import make_rows, model  # noqa: F401 - the fixture is this module's too

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.train.complexity import conclude, judge_complexity
from edgepeft.train.methods import Settings
from edgepeft.train.trials import Candidate, Trial

ROWS = 400
TARGETS = np.array([0, 1] * (ROWS // 2))


def trial(accuracy: float, seed: int = 0) -> Trial:
    """Rows that are right by chance, of a given share; trials of other seeds differ in which."""
    right = np.zeros(ROWS)
    right[np.random.default_rng(seed).permutation(ROWS)[: round(accuracy * ROWS)]] = 1.0
    return Trial(Candidate(Settings()), "x", 1, tuple(range(ROWS)), right, 1 - right, 1.0, 1)


@pytest.mark.parametrize(
    ("accuracies", "finding"),
    [
        # lora, half of the rows, rank 32, full, head
        ((0.52, 0.5, 0.52, 0.53, 0.5), "hopeless"),
        ((0.75, 0.74, 0.76, 0.92, 0.7), "full fine-tuning wins"),
        ((0.75, 0.74, 0.9, 0.9, 0.7), "more rank"),
        ((0.85, 0.7, 0.85, 0.86, 0.7), "more data"),
        ((0.85, 0.84, 0.85, 0.85, 0.84), "a head suffices"),
        ((0.85, 0.84, 0.85, 0.85, 0.7), "an adapter suffices"),
    ],
)
def test_what_follows_from_trials(accuracies: tuple[float, ...], finding: str) -> None:
    lora, half, wide, full, head = (trial(accuracy, seed) for seed, accuracy in enumerate(accuracies))
    found, sentence = conclude(lora, half, wide, full, head, TARGETS)
    assert found == finding
    assert "[" in sentence  # the interval of the difference that decided


def test_a_small_rank_that_learns_what_larger_ones_do_not_is_enough() -> None:
    """All weights are better than ranks 8 and 32, which a high learning rate spoiled, and not better than rank 2."""
    spoiled, full, head, narrow = trial(0.52), trial(0.93, 1), trial(0.5, 2), trial(0.94, 3)
    found, _ = conclude(spoiled, spoiled, spoiled, full, head, TARGETS)
    assert found == "full fine-tuning wins"
    found, sentence = conclude(spoiled, spoiled, spoiled, full, head, TARGETS, narrow=narrow)
    assert found == "an adapter suffices"
    assert "learning rate is too high" in sentence


def test_random_labels_are_hopeless(model: Path) -> None:  # noqa: F811
    generator = np.random.default_rng(4)
    rows = make_rows(520)  # a fifth of them is enough to judge by: one training for each setting
    noise = Examples(rows.texts, tuple(str(label) for label in generator.permutation([0, 1] * 260)))
    found = judge_complexity(model, noise, threads=1, learning_rate=1e-2)
    assert found.finding == "hopeless"
    assert found.majority == pytest.approx(0.5, abs=0.05)
    assert len(found.evidence) == 7


def test_a_word_that_decides_is_not_hopeless_on_the_command_line(model: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = make_rows(520)
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)
    )
    call = ["train", "--model", str(model), "--data", str(tmp_path / "d.jsonl"), "--verdict", "--threads", "1"]
    done = CliRunner().invoke(main, [*call, "--learning-rate", "1e-2"])
    assert done.exit_code == 0, done.output
    assert "verdict: " in done.stdout
    assert "verdict: hopeless" not in done.stdout
    assert "full fine-tuning" in done.stdout
