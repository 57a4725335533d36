"""Drafts by prompt lookup: what followed the last few tokens where they stood before is likely to follow again.

Saxena 2023 (prompt lookup decoding), with the draft's length chosen by what a run over so many tokens costs on this host.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

from ...errors import InputError

Draft = Literal["prompt"]

#: Tokens of the longest draft.
LONGEST = 15
#: The last tokens that are looked up: the longest that is found counts.
_SIZES = (4, 3, 2)
#: A match of so many tokens is a kind of its own: a passage that is being copied.
_PASSAGE = 8
#: The share of a draft's tokens that turn out right, by the length of the match, before anything is known of a text.
_PRIOR = {2: 0.4, 3: 0.6, 4: 0.7, _PASSAGE: 0.85}
_PRIOR_WEIGHT = 4.0
#: What one draft token weighs when the next is seen: some ten count.
_FORGET = 0.9
#: A run over one token more costs this much of a run over one, until it was measured.
_ASSUMED_SLOPE = 0.15
#: Measurements kept for each number of tokens, and how many runs later they no longer count.
_KEPT, _STALE = 8, 256


def check_draft(draft: object) -> None:
    """Raise :class:`InputError` for what names no way to draft."""
    if draft is not None and draft not in get_args(Draft):
        raise InputError(f"draft is 'prompt' (drafts are looked up in prompt and answer) or None, found {draft!r:.80}")


class RunCosts:
    """What a run over 1, 2, 3, … tokens costs on this host, learned from the runs themselves. Threads may share it.

    Drafts that are a bit too long or short change the speed and nothing else, so no time is spent on measuring alone. The first
    run over a number of tokens does not count: ONNX Runtime plans its memory then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}
        self._begun: set[int] = set()
        self._runs = 0
        self._ratios: list[float] | None = None

    def add(self, tokens: int, seconds: float) -> None:
        """A run over ``tokens`` tokens of one row took ``seconds``."""
        with self._lock:
            self._runs += 1
            if tokens not in self._begun:
                self._begun.add(tokens)
                return
            self._seconds.setdefault(tokens, deque(maxlen=_KEPT)).append(seconds)
            self._last[tokens] = self._runs
            if tokens > 1 or self._runs % _KEPT == 0:
                self._ratios = None

    def ratios(self) -> list[float]:
        """``ratios()[n]``: the cost of a run over ``n`` tokens by that of one (``n`` from 1 to ``LONGEST + 1``).

        What was not measured lies on the line between its neighbours; beyond the last one, it grows by the slope so far.
        """
        with self._lock:
            if self._ratios is None:
                self._ratios = self._curve()
            return self._ratios

    def _curve(self) -> list[float]:
        assumed = [0.0, *(1 + _ASSUMED_SLOPE * more for more in range(LONGEST + 1))]
        if 1 not in self._seconds:
            return assumed
        one = median(self._seconds[1])
        known = {
            tokens: max(1.0, median(times) / one)
            for tokens, times in sorted(self._seconds.items())
            if tokens > 1 and self._runs - self._last[tokens] < _STALE
        }
        # A longer run costs no less than a shorter one: what says otherwise was a busy moment.
        least = {tokens: min(ratio for more, ratio in known.items() if more >= tokens) for tokens in known}
        points = [(1, 1.0), *least.items()]
        curve = [0.0]
        for tokens in range(1, LONGEST + 2):
            below = max((point for point in points if point[0] <= tokens), key=lambda point: point[0])
            above = next((point for point in points if point[0] > tokens), None)
            if above is not None:
                share = (tokens - below[0]) / (above[0] - below[0])
                curve.append(below[1] + share * (above[1] - below[1]))
                continue
            slope = (below[1] - 1) / (below[0] - 1) if below[0] > 1 else _ASSUMED_SLOPE
            curve.append(below[1] + slope * (tokens - below[0]))
        return curve


@dataclass(frozen=True)
class Proposal:
    """What may follow, and how many tokens matched."""

    tokens: Sequence[int] = ()
    match: int = 0


class Drafter:
    """Looks up what may follow one row's tokens.

    Args:
        prompt: The row's prompt; :meth:`add` each token as it is chosen.
        costs: What a run over so many tokens costs.
    """

    def __init__(self, prompt: Sequence[int], costs: RunCosts) -> None:
        self.costs = costs
        self.prompt = prompt
        self._tokens: list[int] = []
        #: The last tokens of some place → the place behind it, the latest one.
        self._places: dict[tuple[int, ...], int] = {}
        self._right = {match: share * _PRIOR_WEIGHT for match, share in _PRIOR.items()}
        self._seen = dict.fromkeys(_PRIOR, _PRIOR_WEIGHT)
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """A token stands behind the others."""
        tokens = self._tokens
        for size in _SIZES:
            if len(tokens) >= size:
                self._places[tuple(tokens[-size:])] = len(tokens)
        tokens.append(token)

    def propose(self) -> Proposal:
        """The tokens that followed where the last ones stood before, up to ``LONGEST``; none where they stood nowhere."""
        tokens = self._tokens
        for size in _SIZES:
            place = self._places.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if place is None:
                continue
            found = tokens[place : place + LONGEST]
            while len(found) < LONGEST:  # the text repeats itself, so the draft goes on as it began
                found.append(found[len(found) - (len(tokens) - place)])
            whole = size == _SIZES[0] and place >= _PASSAGE and tokens[place - _PASSAGE : place] == tokens[-_PASSAGE:]
            return Proposal(found, _PASSAGE if whole else size)
        return Proposal()

    def draft(self, most: int) -> tuple[Proposal, list[int]]:
        """What may follow, and how much of it is worth verifying: at most ``most`` tokens."""
        proposal = self.propose()
        return proposal, list(proposal.tokens[: self._length(proposal, most)])

    def _length(self, proposal: Proposal, most: int) -> int:
        """How much of a draft to verify: the length with the most tokens for its cost; 0 where none pays."""
        most = min(most, len(proposal.tokens))
        if most < 1:
            return 0
        ratios = self.costs.ratios()
        share = self._right[proposal.match] / self._seen[proposal.match]
        best, best_speed = 0, 1.0
        tokens = likely = 1.0
        for length in range(1, most + 1):
            likely *= share
            tokens += likely
            speed = tokens / ratios[length + 1]
            if speed > best_speed:
                best, best_speed = length, speed
        return best

    def judge(self, proposal: Proposal, chosen: Sequence[int]) -> None:
        """Learn how good a proposal was from what was chosen, whether it was verified or not."""
        for drafted, token in zip(proposal.tokens, chosen, strict=False):
            self._seen[proposal.match] = self._seen[proposal.match] * _FORGET + 1
            self._right[proposal.match] = self._right[proposal.match] * _FORGET + (drafted == token)
            if drafted != token:
                return
