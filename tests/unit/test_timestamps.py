"""Rules of Whisper's timestamps against transformers' processor, the parts that they bound, and where they are found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepeft.runtime.generation.hearing import up_to
from edgepeft.runtime.generation.timestamps import (
    Part,
    TimestampRules,
    Timestamps,
    find_timestamps,
    parts_of,
)

#: 40 words, an end, three more special tokens, 21 timestamps.
END, NONE, BEGIN, SIZE = 40, 43, 44, 65


def marks(latest_first: int | None = None) -> Timestamps:
    return Timestamps(BEGIN, SIZE, 320, latest_first, NONE)


@pytest.mark.parametrize("latest", [None, 3])
@pytest.mark.parametrize("lean", [-2.0, 0.0, 1.5])
def test_rules_are_those_of_transformers(latest: int | None, lean: float) -> None:
    """Random logits that lean to text or to timestamps; every answer is chosen by the processor's scores, greedily."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = SimpleNamespace(
        no_timestamps_token_id=NONE, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=latest
    )
    reference = transformers.WhisperTimeStampLogitsProcessor(config, begin_index=2)
    rng = np.random.default_rng(5)
    rows = 6
    rules = TimestampRules(marks(None if latest is None else BEGIN + latest), END, rows)
    written = np.zeros((rows, 2), np.int64)
    seen = set()
    for step in range(30):
        logits = rng.standard_normal((len(written), SIZE)).astype(np.float32) * 2
        logits[:, BEGIN:] += lean
        theirs = reference(torch.tensor(written), torch.tensor(logits)).numpy()
        mine = rules.first(logits.copy()) if step == 0 else rules.after(written[:, -1].tolist(), logits.copy())
        assert np.array_equal(mine, theirs)
        chosen = theirs.argmax(axis=1)
        seen |= {bool(token >= BEGIN) for token in chosen}
        written = np.concatenate([written, chosen[:, None]], axis=1)
        if step == 8:  # rows leave a batch in any order
            rules.keep([4, 0, 5])
            written = written[[4, 0, 5]]
    assert seen == {True, False} or lean != 0.0


def test_a_row_without_numbers_stays_one() -> None:
    """NaN is for the sampler to refuse: the rules neither raise nor hide it."""
    rules = TimestampRules(marks(), END, 1)
    assert np.isnan(rules.first(np.full((1, SIZE), np.nan, np.float32))[0, BEGIN:]).all()
    assert np.isnan(rules.after([BEGIN], np.full((1, SIZE), np.nan, np.float32))[0, :END]).all()


@pytest.mark.parametrize(
    ("tokens", "parts", "rest"),
    [
        ([], [], None),
        ([44, 1, 2, 48], [(0, 1280, (1, 2))], None),  # closed
        ([44, 1, 48, 50, 2, 52], [(0, 1280, (1,)), (1920, 2560, (2,))], None),  # a pause between
        ([46, 1, 48, 48, 2], [(640, 1280, (1,)), (1280, None, (2,))], None),  # not closed: to the end of the window
        ([44, 1, 48, 48], [(0, 1280, (1,))], 1280),  # the window ends in the middle of speech
        ([46, 1, 2], [(0, None, (1, 2))], None),  # only what the rules made it write: no times
        ([46], [], None),
        ([1, 2], [(0, None, (1, 2))], None),
        ([44, 1, 48, 2, 50], [(0, 1280, (1,)), (1280, 1920, (2,))], None),  # a pair that lacks one
    ],
)
def test_parts(tokens: list[int], parts: list[Any], rest: int | None) -> None:
    found, goes_on = parts_of(tokens, marks(), lambda each: " ".join(map(str, each)))
    assert [(part.start, part.end, part.tokens) for part in found] == parts
    assert all(part.text == " ".join(map(str, part.tokens)) for part in found)
    assert goes_on == rest


def test_a_stop_string_cuts_the_parts_that_it_came_in() -> None:
    parts = [Part(0, 10, (1,), " one two"), Part(10, 20, (2,), " three"), Part(20, 30, (3,), " four")]
    assert up_to(parts, 11) == [parts[0], Part(10, 20, (2,), " th")]
    assert up_to(parts, 8) == parts[:1]


def known(**tokens: int) -> Any:
    """A tokenizer that has these."""
    return SimpleNamespace(token_id=lambda name: tokens.get(name))


@pytest.mark.parametrize(
    ("tokenizer", "size", "none", "begin"),
    [
        (known(**{"<|0.00|>": 50}), 101, 49, 50),  # a tokenizer that names them
        (known(**{"<|0.00|>": 50}), 101, None, 50),  # generation settings that do not
        (known(), 101, 49, 50),  # a tokenizer that does not, and 51 tokens behind "no timestamps"
        (known(), 100, 49, None),  # one too few: those are something else
        (known(), 50, 49, None),
        (known(), 101, None, None),
        (known(**{"<|0.00|>": 50}), 50, 49, None),  # a tokenizer that knows more than the model
    ],
)
def test_where_timestamps_begin(tokenizer: Any, size: int, none: int | None, begin: int | None) -> None:
    """Windows of a second: 51 timestamps."""
    found = find_timestamps(tokenizer, size, none, 5, 16_000, 320)
    assert (None if found is None else found.begin) == begin
    if found is not None:
        assert (found.end, found.latest_first, found.none) == (size, 55, none)
        assert found.samples(100) == 16_000
        assert 50 in found
        assert 49 not in found
        assert size not in found
