"""The loop: prompts in, tokens and pieces of text out, one step of the graph for all rows that still go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np

from ...errors import InputError, NonFiniteError
from ..finite import non_finite
from .draft import Drafter, RunCosts
from .sampling import Sampler, Sampling, log_probability
from .tokens import TextPieces, Tokens

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True)
class Generation:
    """What was generated from one prompt.

    ``tokens`` are the new ones, the end-of-sequence token included where it came; ``text`` leaves out special tokens and
    the stop string. ``reused_tokens`` of the ``prompt_tokens`` were still in a conversation's cache. ``prefill_ms`` is
    the run over the rest of the prompt, ``first_token_ms`` the time from the call to the first token, and
    ``tokens_per_second`` counts the tokens after the first (``None`` where there was only one). Of ``drafted_tokens``, which were
    verified together with the token before them, ``accepted_tokens`` became part of the answer; 0 without ``draft``.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    reused_tokens: int
    prefill_ms: float
    first_token_ms: float
    tokens_per_second: float | None
    adapter: str | None
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "tokens": list(self.tokens)}


@dataclass(frozen=True)
class Plan:
    """How to generate one text: when to stop, how to choose, and what turns its tokens into text.

    ``eos`` tokens end a text by themselves; ``stop_tokens`` are special tokens that the caller gave as stop strings. ``costs``
    are given where tokens are to be drafted from prompt and answer. ``unwritten`` tokens are no text (timestamps). ``scored``: the
    log-probabilities of the tokens are summed up.
    """

    sampling: Sampling
    max_new_tokens: int
    stops: tuple[str, ...]
    eos: frozenset[int]
    stop_tokens: frozenset[int]
    tokens: Tokens
    costs: RunCosts | None = None
    unwritten: range = range(0)
    scored: bool = False


class Steps(Protocol):
    """A batch of sequences under way in a graph: prompts first, then a token for each row that still goes on."""

    #: ``RunOptions`` of the run under way.
    options: Any

    @property
    def rows(self) -> int:
        """Sequences in the batch."""

    @property
    def width(self) -> int:
        """Tokens in the cache."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read each row's tokens; the logits behind them, ``[rows, vocabulary]``."""

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed one token for each row; the next logits ``[rows, vocabulary]``."""

    @property
    def most_at_once(self) -> int:
        """Tokens that :meth:`verify` takes; 1 where the batch has several rows."""

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed several tokens of the one row; the logits behind each, ``[tokens, vocabulary]``."""

    def rollback(self, count: int) -> None:
        """Forget the last ``count`` tokens that the one row was fed since its prompt."""

    def truncate(self, width: int) -> None:
        """Forget all but the first ``width`` tokens of the cache."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""


class _Row:
    """One prompt of a batch."""

    def __init__(self, number: int, seed_row: int, prompt: Sequence[int], plan: Plan, continues: bool) -> None:
        self.number = number
        self.plan = plan
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        context = self.prompt if continues else []
        self.pieces = TextPieces(plan.tokens, context, plan.stops)
        self.text: list[str] = []
        self.sampler = Sampler(plan.sampling, seed_row, context)
        self.finish: FinishReason | None = None
        self.ended = 0.0
        self.drafter = Drafter(self.prompt, plan.costs) if plan.costs is not None else None
        self.drafted = self.accepted = 0
        self.logprob = 0.0

    def take(self, logits: np.ndarray) -> str:
        """Choose the next token; the text it adds."""
        plan = self.plan
        token = self.sampler.pick(logits)
        self.tokens.append(token)
        if plan.scored:
            self.logprob += log_probability(logits, token)
        if self.drafter is not None:
            self.drafter.add(token)
        piece = ""
        if token in plan.stop_tokens:
            self.finish = "stop"
        elif token in plan.eos:
            self.finish = "eos"
        else:
            if token not in plan.unwritten:
                piece = self.pieces.push(token)
            if self.pieces.stopped:
                self.finish = "stop"
            elif len(self.tokens) >= plan.max_new_tokens:
                self.finish = "length"
        if self.finish is not None:
            piece += self._end()
        self.text.append(piece)
        return piece

    def cancel(self) -> str:
        """End here; the text that was held back."""
        self.finish = "cancelled"
        self.text.append(self._end())
        return self.text[-1]

    def _end(self) -> str:
        self.ended = perf_counter()
        rest = self.pieces.flush()
        if self.pieces.stopped and self.finish != "stop":  # what the last, unfinished character hid
            self.finish = "stop"
        return rest


def fewest_moves(left: Sequence[int]) -> list[int]:
    """The places that are left, so that those among the first ones stay and the others fill the holes between them.

    Example:
        >>> fewest_moves([0, 2, 3, 5])
        [0, 5, 2, 3]
    """
    behind = iter([place for place in left if place >= len(left)][::-1])
    return [place if place in left else next(behind) for place in range(len(left))]


class Run:
    """One call of generate under way: iterate it for ``(row, piece of text)``; ``results`` are complete afterwards.

    ``decoder`` holds the cache; ``reused`` tokens of a single prompt are in it already. ``first_row`` is the first prompt's
    place in the caller's list. Rows that have ended leave the batch. ``continues``: texts go on from their prompts; else
    neither text nor penalties look at them. ``variant`` and ``path`` of the bundle are for messages.
    """

    def __init__(
        self, decoder: Steps, prompts: Sequence[Sequence[int]], plans: Sequence[Plan],
        adapters: Sequence[str | None], started: float, reused: int = 0, first_row: int = 0, continues: bool = True,
        variant: str = "", path: object = "",
    ) -> None:  # fmt: skip
        import onnxruntime as ort

        self._decoder = decoder
        self._options = decoder.options = ort.RunOptions()  # its own, so that a late cancel() ends no later run
        # ONNX Runtime's Python binding (1.32) looks for this entry at each run, and an exception inside it says that there is none,
        # which takes some 50 µs a token. 0 is what none means.
        self._options.add_run_config_entry("gpu_graph_id", "0")
        self._options.log_severity_level = 4  # it would report a cancellation; what fails is raised
        self._reused = reused
        self._model = variant, path
        self._adapters = adapters
        self._rows = [
            _Row(number, first_row + number, prompt, plan, continues)
            for number, (prompt, plan) in enumerate(zip(prompts, plans, strict=True))
        ]
        self._cancelled = threading.Event()
        self._started = started
        self._first = self._prefilled = self._begun = started

    def cancel(self) -> None:
        """End every row after the token under way; from any thread. A prompt that is being read is broken off."""
        self._cancelled.set()
        self._options.terminate = True

    def __iter__(self) -> Iterator[tuple[int, str]]:
        try:
            yield from self._generate()
        finally:
            for row in self._rows:
                if row.finish is None:  # its reader left, or an error came
                    row.cancel()

    def _generate(self) -> Iterator[tuple[int, str]]:
        going = list(self._rows)
        self._begun = perf_counter()
        logits = self._step([row.prompt[self._reused :] for row in going], first=True)
        self._prefilled = self._first = perf_counter()
        while logits is not None:
            for row, scores in zip(going, logits, strict=True):
                piece = self._take(row, scores)
                if len(row.tokens) == 1:
                    self._first = perf_counter()
                if piece:
                    yield row.number, piece
            left = [place for place, row in enumerate(going) if row.finish is None]
            if not left:
                return
            if len(left) < len(going):
                left = fewest_moves(left)
                going = [going[place] for place in left]
                self._decoder.keep(left)
            if len(going) == 1 and (drafter := going[0].drafter) is not None:
                # Rows of a batch go on together: that costs less than drafts save. The last one drafts.
                yield from self._drafted(going[0], drafter)
                break
            logits = None if self._cancelled.is_set() else self._step([row.tokens[-1:] for row in going])
        for row in going:
            if row.finish is None and (piece := row.cancel()):
                yield row.number, piece

    def _take(self, row: _Row, scores: np.ndarray) -> str:
        try:
            return row.take(scores)
        except NonFiniteError as error:
            raise non_finite("next-token logits", self._adapters[row.number], *self._model) from error

    def _drafted(self, row: _Row, drafter: Drafter) -> Iterator[tuple[int, str]]:
        """The rest of one row: its last token and a draft are run at once, and tokens are chosen as long as the draft has them.

        Each token is chosen from the logits behind those that were chosen before it, by the same sampler as without drafts, so
        its distribution is the same.
        """
        while row.finish is None and not self._cancelled.is_set():
            most = min(self._decoder.most_at_once, row.plan.max_new_tokens - len(row.tokens)) - 1
            proposal, draft = drafter.draft(most)
            started = perf_counter()
            logits = self._step([[row.tokens[-1], *draft]])
            if logits is None:
                return
            drafter.costs.add(1 + len(draft), perf_counter() - started)
            begun = len(row.tokens)
            pieces: list[str] = []
            try:
                for place, scores in enumerate(logits):
                    pieces.append(self._take(row, scores))
                    if row.finish is not None or place == len(draft) or row.tokens[-1] != draft[place]:
                        break
            finally:  # and before a reader can leave: the cache holds the tokens that were chosen, but for the last
                chosen = row.tokens[begun:]
                self._decoder.rollback(1 + len(draft) - max(1, len(chosen)))
            row.drafted += len(draft)
            row.accepted += len(chosen) - 1
            drafter.judge(proposal, chosen)
            if text := "".join(pieces):
                yield row.number, text

    def _step(self, tokens: Sequence[Sequence[int]], first: bool = False) -> np.ndarray | None:
        """Logits behind each row's tokens, or behind each token where one row has several; ``None`` once cancelled."""
        try:
            if first:
                return self._decoder.prefill(tokens)
            if len(tokens) == 1 and len(tokens[0]) > 1:
                return self._decoder.verify(tokens[0])
            return self._decoder.step([row[0] for row in tokens])
        except Exception as error:  # ONNX Runtime's exception types are not public
            if self._cancelled.is_set():
                return None  # it reports the termination that cancel() asked for
            raise InputError(
                f"ONNX Runtime cannot run {len(tokens)} prompts of {sorted(map(len, tokens))} tokens after "
                f"{self._decoder.width}: {error}"
            ) from error

    def results(self) -> list[Generation]:
        """What each prompt gave."""
        return [self._result(row) for row in self._rows]

    def mean_logprobs(self) -> list[float]:
        """The mean log-probability of each answer's tokens, in nats, before temperature; for plans that are ``scored``."""
        return [row.logprob / max(1, len(row.tokens)) for row in self._rows]

    def _result(self, row: _Row) -> Generation:
        seconds = row.ended - self._first
        return Generation(
            text="".join(row.text),
            tokens=tuple(row.tokens),
            finish_reason=row.finish or "cancelled",  # never begun
            prompt_tokens=len(row.prompt),
            reused_tokens=self._reused,
            prefill_ms=(self._prefilled - self._begun) * 1e3,
            first_token_ms=(self._first - self._started) * 1e3,
            tokens_per_second=(len(row.tokens) - 1) / seconds if len(row.tokens) > 1 and seconds > 0 else None,
            adapter=self._adapters[row.number],
            drafted_tokens=row.drafted,
            accepted_tokens=row.accepted,
        )
