"""Each row of a batch with its own adapter gives what that row gives alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ragged, save_lora

from edgepeft import runtime
from edgepeft.errors import InputError, UnknownAdapterError
from edgepeft.pipeline import add_slots, read_adapter, write_bundle

#: The same sums in another order (a padded rank, a batch instead of a row): a few float32 roundings of logits near 1.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def bundle(bases: Callable[..., Any], models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    base, model = bases(encoder_only=True), models(encoder_only=True)
    made = {
        "small": save_lora(folder / "small", model, r=2, task_type="SEQ_CLS", num_labels=2, seed=1),
        "wide": save_lora(
            folder / "wide", model, r=6, target_modules="all-linear", task_type="SEQ_CLS", num_labels=2, seed=2
        ),
        "gained": save_lora(folder / "gained", model, use_dora=True, task_type="SEQ_CLS", num_labels=2, seed=3),
        "biased": save_lora(folder / "biased", model, bias="lora_only", task_type="SEQ_CLS", num_labels=2, seed=4),
        "four": save_lora(folder / "four", model, task_type="SEQ_CLS", num_labels=4, seed=5),
    }
    adapters = [read_adapter(path, name=name, weights=base.weight) for name, path in made.items()]
    write_bundle(folder / "bundle", base, add_slots(base, adapters), adapters)
    return folder / "bundle"


def test_each_row_computes_what_it_computes_alone(bundle: Path, bases: Callable[..., Any]) -> None:
    model = runtime.open(bundle)
    inputs = ragged(bases(encoder_only=True), shapes=((4, 11),))[0]
    rows = ["wide", "small", "gained", "small"]
    mixed = model.forward(inputs, adapters=rows)["logits"]
    for row, name in enumerate(rows):
        alone = model.use(name).forward(inputs)["logits"]
        np.testing.assert_allclose(mixed[row], alone[row], atol=TOLERANCE)
        others = [o for o in ("wide", "small", "gained") if o != name]
        assert all(np.abs(model.use(o).forward(inputs)["logits"][row] - mixed[row]).max() > 0.01 for o in others)


def test_a_row_may_use_the_base_and_the_adapter_in_use_stays(bundle: Path, bases: Callable[..., Any]) -> None:
    model = runtime.open(bundle).use("small")
    inputs = ragged(bases(encoder_only=True), shapes=((2, 9),))[0]
    before = model.forward(inputs)["logits"]
    mixed = model.forward(inputs, adapters=[None, "small"])["logits"]
    assert not mixed[0].any()  # the checkpoint holds no head, so the base's logits are zero
    np.testing.assert_allclose(mixed[1], before[1], atol=TOLERANCE)
    assert model.active == "small"
    assert np.array_equal(model.forward(inputs)["logits"], before)


def test_what_cannot_share_a_batch_is_refused_by_name(bundle: Path, bases: Callable[..., Any]) -> None:
    model = runtime.open(bundle)
    inputs = ragged(bases(encoder_only=True), shapes=((2, 9),))[0]
    with pytest.raises(InputError, match=r"'biased' .* cannot differ by row"):
        model.forward(inputs, adapters=["small", "biased"])
    with pytest.raises(UnknownAdapterError, match="no adapter 'nobody'"):
        model.forward(inputs, adapters=["small", "nobody"])
    with pytest.raises(InputError, match=r"3 adapters for inputs with \[2\] rows"):
        model.forward(inputs, adapters=["small", "small", "wide"])


def test_a_projection_of_something_that_has_one_row_is_kept_out_of_mixed_batches(
    bases: Callable[..., Any], models: Callable[..., Path], tmp_path: Path
) -> None:
    """DeBERTa projects its relative positions once for the whole batch; rows cannot differ there."""
    base = bases("deberta-v2")
    checkpoints = {
        "positions": save_lora(tmp_path / "positions", models("deberta-v2"), target_modules=["query_proj"], seed=1),
        "tokens": save_lora(tmp_path / "tokens", models("deberta-v2"), target_modules=["intermediate.dense"], seed=2),
    }
    adapters = [read_adapter(path, name=name, weights=base.weight) for name, path in checkpoints.items()]
    write_bundle(tmp_path / "bundle", base, add_slots(base, adapters), adapters)
    model = runtime.open(tmp_path / "bundle")
    assert {name: entry.per_row for name, entry in model.manifest.adapters.items()} == {
        "positions": False,
        "tokens": True,
    }
    inputs = ragged(base, shapes=((2, 9),))[0]
    with pytest.raises(InputError, match=r"'positions' .* cannot differ by row"):
        model.forward(inputs, adapters=["positions", "tokens"])
    alone = model.use("tokens").forward(inputs)["logits"]
    mixed = model.forward(inputs, adapters=["tokens", None])["logits"]
    np.testing.assert_allclose(mixed[0], alone[0], atol=TOLERANCE)
