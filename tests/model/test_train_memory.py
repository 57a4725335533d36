"""Activations computed again: the same steps with less kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import make_rows, model, tensors  # noqa: F401 - the fixture is this module's too
from test_train_speed import bench, build

from edgepeft.errors import InputError
from edgepeft.train import train_adapter
from edgepeft.train.compare import compare_methods
from edgepeft.train.methods import Settings
from edgepeft.train.steps import Run


def run(place: Any, settings: Settings, again: bool) -> Run:
    return Run(
        place.fresh(settings, 1),
        place.base.tokenizer,
        place.rows,
        batch_size=8,
        learning_rate=1e-2,
        total_steps=10,
        seed=0,
        threads=1,
        checkpointing=again,
    )


def kept_bytes(model: Any, forward: Callable[[], Any]) -> int:  # noqa: F811
    """What autograd keeps for the backward pass, each storage once, weights left out."""
    import torch

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()  # alive until the sum is taken, so that no storage is counted at the place of another
    total = sum(found.values())
    del loss
    return total


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "lora") for kind in ("bert", "roberta", "distilbert", "modernbert", "llama")),
        ("bert", "dora"),
        ("bert", "full"),
    ],
)
def test_the_same_steps_with_less_kept(model: Path, tmp_path: Path, kind: str, method: str) -> None:  # noqa: F811
    place = bench(build(tmp_path / kind, kind, model))
    settings = Settings(method, targets=None if method == "full" else "all-linear", learning_rate=1e-2)
    plain, again = run(place, settings, False), run(place, settings, True)
    again.model.train()
    plain.model.train()
    kept = [kept_bytes(each.model, lambda each=each: each.forward(place.rows[:8]).loss) for each in (plain, again)]
    assert kept[1] < 0.5 * kept[0]  # three layers: their inputs, and what is above and below them
    with plain, again:
        # The same operations on the same numbers, once more.
        assert again.advance(6) == pytest.approx(plain.advance(6), abs=1e-6)
        assert np.abs(again.evaluate(place.rows)[0] - plain.evaluate(place.rows)[0]).max() < 1e-5
    assert again.losses[-1] != again.losses[0]


def test_layers_below_the_lowest_trained_one_stay_kept(model: Path, tmp_path: Path) -> None:  # noqa: F811
    place = bench(build(tmp_path / "bert", "bert", model))
    settings = Settings(targets=("layer.2.attention.self.query", "layer.2.output.dense"))
    plain, again = run(place, settings, False), run(place, settings, True)
    with plain, again:
        plain.keep_states()
        again.keep_states()
        assert again.cached_layers == plain.cached_layers == 2
        assert again.advance(6) == pytest.approx(plain.advance(6), abs=1e-6)


def test_dropout_is_drawn_once(model: Path) -> None:  # noqa: F811
    """The second computation must drop what the first dropped, or gradients are those of another network."""
    import torch

    place = bench(model)
    losses = []
    for again in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            with run(place, Settings(targets="all-linear", dropout=0.5), again) as each:
                losses.append(each.advance(6))
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_a_prefix_cannot_be_computed_twice(model: Path) -> None:  # noqa: F811
    settings = Settings("prefix_tuning", peft=(("num_virtual_tokens", 3),))
    with pytest.raises(InputError, match="PREFIX_TUNING gives layers their states through a cache"):
        run(bench(model), settings, True)


def test_a_whole_training_and_a_comparison(model: Path, tmp_path: Path) -> None:  # noqa: F811
    options: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "threads": 1, "validation_fraction": 0.25}
    for again in (False, True):
        train_adapter(
            model, make_rows(80), tmp_path / str(again), gradient_checkpointing=again, progress=False, **options
        )
    plain, mine = tensors(tmp_path / "False"), tensors(tmp_path / "True")
    assert plain.keys() == mine.keys()
    assert max(float(np.abs(plain[name] - mine[name]).max()) for name in plain) < 1e-5
    found = [
        compare_methods(model, make_rows(80), ["lora", "full"], gradient_checkpointing=again, **options)
        for again in (False, True)
    ]
    assert [row.score for row in found[0].rows] == [row.score for row in found[1].rows]
