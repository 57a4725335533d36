"""Encoder-decoders: a text is read once, and the decoder writes with a cache that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...bundle.cache_names import as_pasts, grows
from ...errors import BundleError, InputError
from ..active import ActiveAdapter
from ..sessions import run_values
from .chat import NO_ARGUMENTS, TemplateArguments
from .decoder import padded, rows_of
from .defaults import Defaults
from .encoder import Prompt, PromptEncoder, token_ids
from .generator import Generator
from .graphs import Graphs
from .loop import Plan
from .options import Options


class CrossedDecoder:
    """A batch of texts being written, each about an input of its own; the calls are those of ``Decoder``.

    ``options`` are the ``RunOptions`` of the run under way.
    """

    def __init__(self, graphs: Graphs, active: ActiveAdapter, defaults: Defaults) -> None:
        if defaults.start is None:
            raise BundleError(f"{graphs.bundle.file('config.json')} names no decoder_start_token_id to begin with")
        self.options: Any = None
        self._graphs = graphs
        self._active = active
        self._session = graphs.decoder_session
        self._start = defaults.start
        self._forced = defaults.forced
        self._outputs = [output.name for output in self._session.get_outputs()]
        names = {value.name for value in self._session.get_overridable_initializers()}
        self._slots = {name: value for name, value in graphs.slot_values(active).items() if name in names}
        self._again: dict[str, np.ndarray] = {}
        self._cache: dict[str, np.ndarray] = {}
        self.rows = self.width = 0

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read each row's tokens with the encoder; logits of the first token to write, ``[rows, vocabulary]``."""
        ids, mask = padded(prompts)
        self.read({"input_ids": ids, "attention_mask": mask}, {"encoder_attention_mask": mask})
        logits = self.step([self._start] * self.rows)
        if self._forced is not None:
            chosen = logits[:, self._forced].copy()
            logits[:] = -np.inf
            logits[:, self._forced] = chosen
        return logits

    def read(self, inputs: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray]) -> None:
        """Run the encoder over ``inputs`` and begin with an empty cache; each step is fed ``again`` besides."""
        encoded = self._graphs.run(inputs, self._active)
        self.rows = len(next(iter(inputs.values())))
        own = {
            value.name: np.zeros((self.rows, int(value.shape[1]), 0, int(value.shape[3])), np.float32)
            for value in self._session.get_inputs()
            if grows(value.name)
        }
        self._again, self._cache, self.width = dict(again), {**as_pasts(encoded), **own}, 0

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Feed ``tokens`` ``[rows, tokens]``; the logits behind the last of each row, ``[rows, vocabulary]``."""
        return self.feed_all(tokens)[:, -1]

    def feed_all(self, tokens: np.ndarray) -> np.ndarray:
        """Feed ``tokens`` ``[rows, tokens]``; the logits behind each, ``[rows, tokens, vocabulary]``."""
        fed = {"input_ids": tokens, **self._again, **self._cache}
        found = run_values(self._session, self._outputs, fed, self._slots, self.options)
        self._cache |= as_pasts(found)
        self.width += tokens.shape[1]
        logits: np.ndarray = found["logits"]
        return logits

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed one token for each row; the next logits ``[rows, vocabulary]``."""
        return self.feed(np.array(tokens, np.int64)[:, None])

    @property
    def most_at_once(self) -> int:
        """One: drafts are for decoder-only models."""
        return 1

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed the one token that :attr:`most_at_once` allows; the logits behind it, ``[1, vocabulary]``."""
        return self.step(tokens)

    def rollback(self, count: int) -> None:
        """Forget the last ``count`` tokens that were written."""
        self.truncate(self.width - count)

    def truncate(self, width: int) -> None:
        """Forget all but the first ``width`` tokens that were written."""
        self._cache = {n: np.ascontiguousarray(a[:, :, :width]) if grows(n) else a for n, a in self._cache.items()}
        self.width = width

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        index = list(rows)
        if index == list(range(self.rows)):
            return
        self.rows = len(index)
        self._again = {name: array[index] for name, array in self._again.items()}
        self._cache = {name: array[index] for name, array in self._cache.items()}
        self._slots = rows_of(self._slots, index, self._active.row_names is not None)


class SourceEncoder(PromptEncoder):
    """From a text to the tokens that the encoder reads; no chat templates."""

    task = "text2text-generation"
    template = None

    def encode(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        system: str | None = None,
        before: int = 0,
        arguments: TemplateArguments = NO_ARGUMENTS,
    ) -> list[int]:
        """A text's tokens; :class:`InputError` for an empty or too long one, and for messages."""
        if not isinstance(prompt, (str, np.ndarray)) or chat or system is not None or arguments:
            raise InputError("an encoder-decoder takes plain texts: no messages, chat template or system message")
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("the text is empty; give at least one character")
            tokens = self.tokens.encode(prompt, special=True)
        else:
            tokens = token_ids(prompt)
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

    def plan(self, prompts: Sequence[Sequence[int]], options: Options, before: int = 0) -> Plan:
        """When to stop and how to choose; :class:`InputError` for drafts."""
        if options.draft is not None:
            raise InputError(
                f"draft={options.draft!r} is for causal language models; an encoder-decoder's answer does not go on from its text"
            )
        return super().plan(prompts, options, before)

    def decoder(self, active: ActiveAdapter, rows: int, capacity: int) -> CrossedDecoder:
        """A fresh decoder with the adapter's tensors; its cache grows as it writes."""
        return CrossedDecoder(self.graphs, active, self.defaults)
