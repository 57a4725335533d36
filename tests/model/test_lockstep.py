"""Passes that share one block of a model's numbers at a time: what they give, and what happens where one fails."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal, build_other

from edgepeft.adapters.layout import conv1d_weights
from edgepeft.base.parity_causal import causal_batches, from_rows, reference_causal, row_calls
from edgepeft.base.streamed.checkpoint import widen
from edgepeft.base.streamed.load import load_in_place
from edgepeft.base.streamed.lockstep import Lockstep
from edgepeft.base.streamed.numbers import StoredNumbers


def opened(folder: Path) -> tuple[Any, StoredNumbers]:
    given = load_in_place(folder)
    model = given.loaded.model
    return model, StoredNumbers(given.arrays, widen, turned=frozenset(conv1d_weights(model)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("large", [1 << 25, 100], ids=["whole", "in pieces"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3_text"])
def test_same_logits_as_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, large: int
) -> None:
    """To the bit: the same operations on the same numbers, for several passes over two copies."""
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("edgepeft.base.streamed.lockstep.LARGE", large)
    folder = build_causal(tmp_path) if architecture == "llama" else build_other(tmp_path, architecture)
    model, numbers = opened(folder)
    steps = Lockstep(model, numbers)
    copies = [steps.copy(), steps.copy()]
    ids = [torch.randint(3, 200, (2, length), generator=torch.Generator().manual_seed(length)) for length in (3, 9, 17)]
    mask = [torch.ones_like(each) for each in ids]
    works = [
        lambda copy=copy, i=i: copy(input_ids=ids[i], attention_mask=mask[i]).logits
        for copy in copies
        for i in range(3)
    ]
    found = steps.run(works)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [whole(input_ids=ids[i], attention_mask=mask[i]).logits for i in range(3)]
    for mine, theirs in zip(found, expected * 2, strict=True):
        assert float((mine - theirs).abs().max()) <= (0 if large > 100 else 1e-5)
    assert all(p.untyped_storage().nbytes() <= 4 for p in model.parameters()), "numbers are dropped again"


def test_rows_give_what_padded_prompts_give(llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    for batch in causal_batches(vocab=200, pad_id=2, max_length=60, window=40):
        prompt, following = from_rows(batch, [call() for call in row_calls(model, batch)])
        expected = reference_causal(model, batch)
        real = batch.mask[:, batch.mask.shape[1] - batch.kept :, None]
        assert np.abs((prompt - expected[0]) * real).max() < 1e-5
        assert np.abs(following - expected[1]).max() < 1e-5
        assert not (prompt * (1 - real)).any()


def test_a_pass_that_fails_ends_the_others(llama: Path) -> None:
    import torch

    model, numbers = opened(llama)
    steps = Lockstep(model, numbers)
    copy = steps.copy()
    ids = torch.tensor([[3, 4, 5]])
    ended = []

    def good() -> Any:
        try:
            return copy(input_ids=ids).logits
        finally:
            ended.append(True)

    def bad() -> Any:
        copy(input_ids=ids)
        raise ValueError("this pass")

    before = threading.active_count()
    with pytest.raises(ValueError, match="this pass"):
        steps.run([good, bad, lambda: [good(), good(), good()]])
    assert threading.active_count() == before
    assert len(ended) >= 2


def test_numbers_that_cannot_be_read_are_said(llama: Path) -> None:
    import torch

    model, numbers = opened(llama)

    class Lost(StoredNumbers):
        def whole(self, name: str, /) -> np.ndarray:
            if "layers.1" in name:
                raise OSError("no such page")
            return super().whole(name)

    steps = Lockstep(model, Lost(numbers.arrays, widen))
    copy = steps.copy()
    before = threading.active_count()
    with pytest.raises(OSError, match="no such page"):
        steps.run([lambda: copy(input_ids=torch.tensor([[3, 4]])).logits for _ in range(3)])
    assert threading.active_count() == before


def test_a_copy_runs_inside_only(llama: Path) -> None:
    import torch

    copy = Lockstep(*opened(llama)).copy()
    with pytest.raises(RuntimeError, match=r"inside Lockstep\.run only"):
        copy(input_ids=torch.tensor([[3, 4]]))
