"""Choosing tokens: against Hugging Face's own filters, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgepeft.errors import BundleError, InputError
from edgepeft.runtime.generation.sampling import Sampler, Sampling


def drawn(logits: np.ndarray, draws: int = 4000, prompt: tuple[int, ...] = (), **options: float) -> np.ndarray:
    """How often each token is drawn, as shares. Each draw is a sampler of its own: a penalty counts what it saw."""
    counts = np.zeros(len(logits))
    for seed in range(draws):
        counts[Sampler(Sampling(seed=seed, **options), 0, list(prompt)).pick(logits)] += 1  # type: ignore[arg-type]
    return counts / draws


def expected(logits: np.ndarray, prompt: tuple[int, ...] = (), **options: float) -> np.ndarray:
    """The distribution that Hugging Face's generate draws from."""
    import torch
    from transformers.generation.logits_process import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores, seen = torch.tensor(logits)[None], torch.tensor([prompt or (0,)])
    if "repetition_penalty" in options:
        scores = RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])(seen, scores)
    scores = TemperatureLogitsWarper(float(options["temperature"]))(seen, scores)
    if "top_k" in options:
        scores = TopKLogitsWarper(int(options["top_k"]))(seen, scores)
    if "top_p" in options:
        scores = TopPLogitsWarper(options["top_p"])(seen, scores)
    return np.asarray(torch.softmax(scores, -1)[0].numpy())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9},
        {"temperature": 1.0, "repetition_penalty": 1.8},
    ],
)
def test_draws_from_hugging_faces_distribution(options: dict[str, float]) -> None:
    logits = np.random.default_rng(3).normal(size=12).astype(np.float32) * 2
    prompt = (int(logits.argmax()), int(logits.argmin()))
    wanted, found = expected(logits, prompt, **options), drawn(logits, prompt=prompt, **options)
    assert not found[wanted == 0].any()
    # Five standard errors of a share over 4,000 draws.
    assert (np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 4000) + 1e-9).all()


def test_greedy_takes_the_largest() -> None:
    logits = np.array([0.1, 3.0, 2.9], np.float32)
    assert Sampler(Sampling(), 0, []).pick(logits) == 1


def test_greedy_with_a_penalty_counts_the_prompt_and_its_own_tokens() -> None:
    logits = np.array([2.0, 3.0, 2.5, -0.1], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0), 0, [1])
    assert [sampler.pick(logits) for _ in range(3)] == [2, 0, 1]
    assert logits.tolist() == pytest.approx([2.0, 3.0, 2.5, -0.1])  # the caller's array is not touched


def test_a_seed_repeats_and_rows_differ() -> None:
    logits = np.zeros(1000, np.float32)
    options = Sampling(temperature=1.0, seed=7)
    rows = [[Sampler(options, row, []).pick(logits) for _ in range(2)] for row in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = np.array([1.0, 1000.0, 999.0], np.float32)
    assert drawn(logits, draws=50, temperature=1e-300)[1] == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": "a"},
    ],
)
def test_refused(options: dict[str, object]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(InputError, match=name) as caught:
        Sampling(**options)  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


def test_logits_that_are_not_numbers() -> None:
    with pytest.raises(BundleError, match="not finite"):
        Sampler(Sampling(), 0, []).pick(np.array([0.0, np.nan], np.float32))
