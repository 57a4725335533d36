"""Batches of a language model with an adapter on its embedding, whose factors lead with tokens and a rank, not with rows."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from causal import build_causal
from conftest import save_lora

from edgepeft import runtime
from edgepeft.pipeline import export

PROMPTS = ("good day", "the film was", "a")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    model = build_causal(folder / "model")
    options = {"task": "text-generation", "task_type": "CAUSAL_LM", "target_modules": ["embed_tokens", "q_proj"]}
    with warnings.catch_warnings():
        # peft 0.21 says that it saves the embedding too, and that the head is tied to it (November 2026).
        warnings.simplefilter("ignore", UserWarning)
        saved = save_lora(folder / "lora", model, scale=0.25, r=3, **options)
    return export(model, {"lora": saved}, folder / "bundle").bundles[0].path


def test_rows_that_leave(bundle: Path) -> None:
    """Reference: the rows that stay, alone. 1e-5 of the largest logit: other batches sum in another order."""
    with runtime.open(bundle) as model:
        assert model.manifest.slots.embeddings
        view = model.adapter("lora")
        tokens = [model.generator.tokens.encode(text, special=True) for text in PROMPTS]
        # As many rows as the rank: B leads with it.
        all_rows, two = view.decoder(3, 24), view.decoder(2, 24)
        all_rows.prefill(tokens)
        all_rows.step([5, 6, 7])
        all_rows.keep([0, 2])
        two.prefill([tokens[0], tokens[2]])
        two.step([5, 7])
        found, expected = all_rows.step([8, 9]), two.step([8, 9])
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
        assert np.abs(expected - model.base.decoder(2, 24).prefill([tokens[0], tokens[2]])).max() > 0.01


def test_prompts_that_are_read_one_by_one(bundle: Path) -> None:
    """Of more tokens together than are read at once."""
    with runtime.open(bundle) as model:
        view = model.adapter("lora")
        prompts = ["a film " * 20, "good", "the end of the book " * 8]
        together = view.generate(prompts, max_new_tokens=4, temperature=0, chat=False)
        alone = [view.generate(text, max_new_tokens=4, temperature=0, chat=False) for text in prompts]
        assert [each.tokens for each in together] == [each.tokens for each in alone]
