"""Features taught by contrast: the loss by hand, where it is taken, the batches, and what a network learns from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import make_rows, model  # noqa: F401 - the fixture is this module's too
from test_tune import bench

from edgepeft.train.contrast import contrast, pair_loss, shuffled_batches
from edgepeft.train.frozen_features import features, head_of
from edgepeft.train.methods import Settings
from edgepeft.train.steps import Run
from edgepeft.train.trials import Candidate, trained

SETTINGS = Settings("lora", rank=2, targets="all-linear", learning_rate=3e-3)


def test_the_loss_by_hand() -> None:
    """Three texts: the pair of one label at a cosine of 0.6, the two others at 0.8 and 0."""
    import torch

    states = torch.tensor([[2.0, 0], [0.6, 0.8], [0, 5]])
    expected = ((0.6 - 1) ** 2 + (0.8**2 + 0**2) / 2) / 2
    assert float(pair_loss(states, [0, 0, 1])) == pytest.approx(expected, abs=1e-6)
    assert float(pair_loss(states[:2], [1, 1])) == pytest.approx((0.6 - 1) ** 2, abs=1e-6)
    assert float(pair_loss(states[1:], [0, 1])) == pytest.approx(0.8**2, abs=1e-6)
    assert float(pair_loss(torch.eye(2).repeat(2, 1), [0, 1, 0, 1])) == 0.0


def test_batches_are_all_rows_once_and_never_one_row() -> None:
    rows: Any = list(range(65))
    drawn = shuffled_batches(rows, 16, np.random.default_rng(0))
    assert [len(batch) for batch in drawn] == [16, 16, 16, 17]
    assert sorted(row for batch in drawn for row in batch) == rows
    assert drawn != shuffled_batches(rows, 16, np.random.default_rng(1))
    assert [len(batch) for batch in shuffled_batches(rows[:34], 16, np.random.default_rng(0))] == [16, 16, 2]
    assert [len(batch) for batch in shuffled_batches(rows[:5], 16, np.random.default_rng(0))] == [5]


def test_it_is_taken_at_the_mean_of_the_last_states_and_at_what_the_head_reads(model: Path) -> None:  # noqa: F811
    """Against transformers' own outputs; padding is left out of the mean."""
    import torch

    place = bench(model, make_rows(12))
    net: Any = place.fresh(SETTINGS, 0).eval()
    run = Run(net, place.base.tokenizer, place.rows, batch_size=12, learning_rate=1e-3, total_steps=1, seed=0)
    rows = list(place.rows)
    assert len({len(row) for row in rows}) > 1
    with torch.no_grad():
        found = float(contrast(run, rows, head_of(net, 2)))
        padded = place.base.tokenizer.pad([row.features for row in rows], return_tensors="pt")
        output = net.get_base_model().bert(**padded)
        means = torch.stack(
            [states[: len(row)].mean(dim=0) for row, states in zip(rows, output.last_hidden_state, strict=True)]
        )
        targets = [row.target for row in rows]
        expected = float(pair_loss(means, targets) + pair_loss(output.pooler_output, targets)) / 2
    assert found == pytest.approx(expected, abs=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_texts_of_a_label_come_together_and_the_head_is_solved_for(model: Path) -> None:  # noqa: F811
    """A random network knows nothing of these labels; 60 steps bring the rows to their labels' sides."""
    place = bench(model, make_rows(32))
    run = trained(place, Candidate(SETTINGS, "contrast", 0.1), place.rows, 60, 4, 0, 1)
    assert len(run.losses) == 60
    assert run.batch_size == 32
    assert np.mean(run.losses[-5:]) < 0.5 * np.mean(run.losses[:5])
    with run:
        states = features(run, place.rows, head_of(run.model, 2))
        logits, _ = run.evaluate(place.rows)
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    targets = np.array([row.target for row in place.rows])
    alike = targets[:, None] == targets[None]
    assert (unit @ unit.T)[alike].mean() > (unit @ unit.T)[~alike].mean() + 0.2
    assert (logits.argmax(axis=1) == targets).mean() > 0.9
