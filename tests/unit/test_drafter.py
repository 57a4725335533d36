"""Drafts by prompt lookup: what is found, how long a draft is, and what a run over several tokens is taken to cost."""

from __future__ import annotations

import random

import pytest

from edgepeft.errors import InputError
from edgepeft.runtime.generation.draft import LONGEST, Drafter, RunCosts, check_draft


def costs(*ratios: float) -> RunCosts:
    """Costs that were measured three times for 1, 2, 3, … tokens."""
    made = RunCosts()
    for _ in range(3):
        for tokens, ratio in enumerate(ratios, 1):
            made.add(tokens, ratio * 0.01)
    return made


def naive(tokens: list[int]) -> list[int]:
    """The reference: the latest earlier place of the longest of the last 4, 3 or 2 tokens, and what followed, repeated."""
    for size in (4, 3, 2):
        tail = tokens[-size:]
        for place in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) >= size and tokens[place - size : place] == tail:
                followed = tokens[place:]
                return [followed[i % len(followed)] for i in range(LONGEST)]
    return []


@pytest.mark.parametrize("seed", range(30))
def test_what_followed_the_last_tokens_before(seed: int) -> None:
    rng = random.Random(seed)
    drafter = Drafter([], costs(1))
    tokens: list[int] = []
    for _ in range(120):
        assert list(drafter.propose().tokens) == naive(tokens)
        tokens.append(rng.randrange(4))
        drafter.add(tokens[-1])


def test_a_copied_passage_is_trusted_more() -> None:
    text = list(range(40))
    drafter = Drafter([*text, 99, *text[5:15]], costs(1))
    assert drafter.propose().match == 8
    assert list(drafter.propose().tokens[:3]) == [15, 16, 17]
    assert Drafter([*text, 99, *text[5:8]], costs(1)).propose().match == 3


def test_no_draft_where_it_does_not_pay() -> None:
    prompt = [1, 2, 3, 4, 5, 1, 2]
    assert Drafter(prompt, costs(1.0, 2.0, 3.0)).draft(15)[1] == [], "two tokens for the price of two runs save nothing"
    assert len(Drafter(prompt, costs(*[1.0] * 16)).draft(15)[1]) == LONGEST, "tokens that cost nothing are all tried"
    assert len(Drafter(prompt, costs(*[1.0] * 16)).draft(3)[1]) == 3
    assert Drafter(prompt, costs(*[1.0] * 16)).draft(0)[1] == []
    cheap, dear = (len(Drafter(prompt, costs(1.0, 1 + x, 1 + 2 * x, 1 + 3 * x)).draft(15)[1]) for x in (0.05, 0.3))
    assert cheap > dear > 0


def test_wrong_drafts_become_short_and_right_ones_long() -> None:
    drafter = Drafter([1, 2, 3, 4, 5, 1, 2], costs(1.0, 1.2, 1.4, 1.6, 1.8))
    proposal, at_first = drafter.draft(15)
    for _ in range(20):
        drafter.judge(proposal, [77])
    assert drafter.draft(15)[1] == []
    for _ in range(20):
        drafter.judge(proposal, list(proposal.tokens[:4]))
    assert len(drafter.draft(15)[1]) > len(at_first)


def test_the_cost_curve() -> None:
    assert RunCosts().ratios()[1] == 1.0
    curve = costs(1.0, 1.2, 1.6).ratios()
    assert curve[1:4] == pytest.approx([1.0, 1.2, 1.6])
    assert curve[5] == pytest.approx(1.6 + 2 * 0.3), "the slope so far goes on"
    some = RunCosts()
    for _ in range(3):
        for tokens, seconds in ((1, 0.01), (5, 0.03)):
            some.add(tokens, seconds)
    assert some.ratios()[3] == pytest.approx(2.0), "between what was measured lies a line"
    assert len(some.ratios()) == LONGEST + 2


def test_a_busy_moment_does_not_make_a_short_run_dear() -> None:
    assert costs(1.0, 3.0, 1.4).ratios()[2:4] == pytest.approx([1.4, 1.4])


def test_a_first_run_does_not_count() -> None:
    made = costs(1.0, 1.2)
    made.add(4, 5.0)
    assert made.ratios()[4] < 2
    made.add(4, 0.02)
    assert made.ratios()[4] == pytest.approx(2.0)


def test_a_measurement_grows_old() -> None:
    made = costs(1.0, 50.0)
    for _ in range(300):
        made.add(1, 0.01)
    assert made.ratios()[2] < 2, "a busy moment is not held against drafts for ever"


@pytest.mark.parametrize("draft", ["", "model", True, 1, ["prompt"]])
def test_refused(draft: object) -> None:
    with pytest.raises(InputError, match="draft is 'prompt'"):
        check_draft(draft)
