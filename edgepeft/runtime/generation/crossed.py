"""Encoder-decoders under way: what is read once, and the decoder's cache that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from .decoder import padded, rows_of
from .encoder import Prompt, PromptEncoder
from .encoder_decoder import PAST, PRESENT, is_own
from .generator import Generator

if TYPE_CHECKING:
    from ..active import ActiveAdapter
    from ..session import Runtime


class CrossedDecoder:
    """A batch of texts being written, each about an input of its own; the calls are those of ``Decoder``.

    ``options`` are the ``RunOptions`` of the run under way.
    """

    def __init__(self, runtime: Runtime, active: ActiveAdapter) -> None:
        self.options: Any = None
        self._runtime = runtime
        self._active = active
        self._graph = runtime.seq2seq
        self._slots = self._graph.slots(active)
        self._mask = np.zeros((0, 0), np.int64)
        self._cache: dict[str, np.ndarray] = {}
        self.width = 0

    @property
    def rows(self) -> int:
        """Texts in the batch."""
        return len(self._mask)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read each row's tokens with the encoder; logits of the first token to write, ``[rows, vocabulary]``."""
        ids, mask = padded(prompts)
        return self.read({"input_ids": ids, "attention_mask": mask})

    def read(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """:meth:`prefill` for padded arrays ``[rows, tokens]``."""
        self._mask = inputs["attention_mask"]
        self._cache = self._graph.empty(self._runtime.run_arrays(inputs, self._active), self.rows)
        self.width = 0
        logits = self.step([self._graph.start] * self.rows)
        if self._graph.forced is not None:
            chosen = logits[:, self._graph.forced].copy()
            logits[:] = -np.inf
            logits[:, self._graph.forced] = chosen
        return logits

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed one token for each row; the next logits ``[rows, vocabulary]``."""
        column = np.array(tokens, np.int64)[:, None]
        fed = {"input_ids": column, "encoder_attention_mask": self._mask, **self._cache}
        found = self._graph.step(fed, self._slots, self.options)
        self._cache |= {PAST + name.removeprefix(PRESENT): a for name, a in found.items() if name.startswith(PRESENT)}
        self.width += 1
        logits: np.ndarray = found["logits"][:, -1]
        return logits

    def truncate(self, width: int) -> None:
        """Forget all but the first ``width`` tokens that were written."""
        self._cache = {n: np.ascontiguousarray(a[:, :, :width]) if is_own(n) else a for n, a in self._cache.items()}
        self.width = width

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        index = list(rows)
        if index == list(range(self.rows)):
            return
        self._mask = self._mask[index]
        self._cache = {name: array[index] for name, array in self._cache.items()}
        self._slots = {name: rows_of(value, index) for name, value in self._slots.items()}


class SourceEncoder(PromptEncoder):
    """From a text to the tokens that the encoder reads; no chat templates."""

    task = "text2text-generation"
    template = None

    def encode(
        self, prompt: Prompt, *, chat: bool | None = None, system: str | None = None, before: int = 0
    ) -> list[int]:
        """A text's tokens; :class:`InputError` for an empty or too long one, and for messages."""
        if not isinstance(prompt, str) or chat or system is not None:
            raise InputError("an encoder-decoder takes plain texts: no messages, chat template or system message")
        if not prompt:
            raise InputError("the text is empty; give at least one character")
        tokens = self.tokens.encode(prompt, special=True)
        limit = self.defaults.context
        if limit is not None and len(tokens) > limit:
            raise InputError(f"the text has {len(tokens)} tokens; this model reads at most {limit}. Shorten it.")
        return tokens

    def left(self, longest: int, before: int) -> int | None:
        """What may be written: the decoder has a context of its own, of which the start token takes a place."""
        return None if self.defaults.context is None else self.defaults.context - 1

    def _too_many(self, longest: int, wanted: int, left: int, before: int) -> str:
        return f"{wanted} new tokens were asked for; this model's decoder writes at most {left} new tokens"


class Writer(Generator):
    """Generation with an encoder-decoder: a prompt is read, and what is written does not go on from it."""

    continues = False
    encoder = SourceEncoder

    def decoder(self, active: ActiveAdapter, rows: int, capacity: int) -> CrossedDecoder:
        """A fresh decoder with the adapter's tensors; its cache grows as it writes."""
        return CrossedDecoder(self.runtime, active)
