"""Writing down speech with Whisper: a window of sound is read once, and the decoder writes behind tokens that say how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np

from ...bundle import NO_TEXT, OwnText
from ...errors import InputError
from ..active import ActiveAdapter
from .decoder import rows_of
from .encoder import Prompt, PromptEncoder
from .encoder_decoder import CrossedDecoder
from .generator import Generator
from .graphs import Graphs
from .log_mel import LogMel, read_log_mel
from .loop import Plan
from .options import Options
from .sampling import log_probability
from .speech_tokens import SpeechTokens, read_speech_tokens
from .timestamps import TimestampRules, Timestamps


class SoundDecoder(CrossedDecoder):
    """A batch of windows of sound being written down; ``features`` are their log-mel frames ``[rows, bins, frames]``.

    ``before`` are the tokens before the answers; where a language is ``None`` the likeliest one is taken for each row.
    ``timestamps``: answers hold them, by Whisper's rules. ``repeatable``: what was read is kept for :meth:`again`.
    """

    def __init__(
        self,
        graphs: Graphs,
        active: ActiveAdapter,
        writer: Transcriber,
        features: np.ndarray,
        before: Sequence[int | None],
        timestamps: Timestamps | None = None,
        repeatable: bool = False,
    ) -> None:
        super().__init__(graphs, active, writer.defaults)
        self._features, self._before, self._speech = features, before, writer.speech
        self._timestamps, self._text_end = timestamps, min(writer.defaults.eos, default=0)
        self._rules: TimestampRules | None = None
        self._repeatable = repeatable
        self._read: dict[str, np.ndarray] = {}
        self._all_slots = self._slots
        #: The tokens before the answers ``[rows, tokens]``: those of the windows that were read, and of one to write down again.
        self._known: np.ndarray | None = None
        self._prompts: np.ndarray | None = None
        #: The language of each row, once it was heard; ``None`` for a model of one language.
        self.languages: list[str | None] = [None] * len(features)
        #: The probability that nobody speaks, for each row, once it was read; ``None`` for a model without a token for it.
        self.no_speech: list[float | None] = [None] * len(features)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read the windows; logits of the first token of each answer, ``[rows, vocabulary]``."""
        tokens = self._hear() if self._prompts is None else self._prompts
        logits = self.feed_all(tokens)
        if self._speech.silence is not None:
            self.no_speech = [math.exp(log_probability(each, self._speech.silence)) for each in logits[:, 0]]
        first = self._without(logits[:, -1], (*self._speech.never, *self._speech.never_first))
        if self._timestamps is None:
            return first
        self._rules = TimestampRules(self._timestamps, self._text_end, self.rows)
        return self._rules.first(first)

    def _hear(self) -> np.ndarray:
        """Read the windows with the encoder; the tokens before the answers ``[rows, tokens]``."""
        self.read({"input_features": self._features}, {})
        tokens = np.array([[-1 if token is None else token for token in self._before]] * self.rows, np.int64)
        names = {token: name.strip("<|>") for name, token in self._speech.languages.items()}
        if None in self._before:
            codes = list(names)
            logits = self.feed(tokens[:, :1])
            tokens[:, 1] = np.array(codes, np.int64)[logits[:, codes].argmax(axis=1)]
            self.truncate(0)
        if names:
            self.languages = [names[int(token)] for token in tokens[:, 1]]
        if self._repeatable:
            self._read, self._all_slots, self._known = dict(self._cache), self._slots, tokens
        return tokens

    def again(self, row: int) -> SoundDecoder:
        """A decoder over the window of one row, which is not read again; its language is the one that was heard."""
        if self._known is None:
            raise ValueError("the windows were not read, or not by a decoder that is repeatable")
        other = copy(self)
        other.rows, other.width = 1, 0
        other._cache = {name: array[[row]] for name, array in self._read.items()}
        other._slots = rows_of(self._all_slots, [row], self._active.row_names is not None)
        other._prompts = self._known[[row]]
        return other

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed one token for each row; the next logits ``[rows, vocabulary]``."""
        logits = self._without(super().step(tokens), self._speech.never)
        return logits if self._rules is None else self._rules.after(tokens, logits)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        super().keep(rows)
        if self._rules is not None:
            self._rules.keep(rows)

    @staticmethod
    def _without(logits: np.ndarray, tokens: tuple[int, ...]) -> np.ndarray:
        if tokens:
            logits[:, list(tokens)] = -np.inf
        return logits


class _Spoken(PromptEncoder):
    """Takes no prompts: what is read is sound."""

    task = "automatic-speech-recognition"
    template = None

    def _too_many(self, longest: int, wanted: int, left: int, before: int) -> str:
        return f"{wanted} new tokens were asked for; this model writes at most {left} of one window"


class Transcriber(Generator):
    """Transcription with a bundle's model: how sound becomes frames, the tokens before an answer, the graphs."""

    continues = False
    encoder = _Spoken

    def __init__(self, graphs: Graphs, own: OwnText = NO_TEXT) -> None:
        super().__init__(graphs, own)
        self.log_mel: LogMel = read_log_mel(graphs.bundle)
        self.speech: SpeechTokens = read_speech_tokens(
            graphs.bundle, own, self.defaults.start, self.tokens, self.log_mel
        )

    def encode(self, prompt: Prompt, options: Options, before: int = 0) -> list[int]:
        """:class:`InputError`: a text is no sound."""
        raise InputError("this model writes down speech: call transcribe with sound (edgepeft run BUNDLE --audio FILE)")

    def plan(self, prompts: Sequence[Sequence[int]], options: Options, before: int = 0) -> Plan:
        """When to stop and how to choose; without ``max_new_tokens`` as much as the model has places for."""
        if (
            options.draft is not None
            or options.chat is not None
            or options.system is not None
            or options.template_arguments
        ):
            raise InputError(
                "draft, chat, system and template arguments are for causal language models, not for speech"
            )
        if options.max_new_tokens is None:
            options = replace(
                options, max_new_tokens=self.defaults.new_tokens or self.prompts.left(max(map(len, prompts)), before)
            )
        marks, found = self.speech.timestamps, super().plan(prompts, options, before)
        return found if marks is None else replace(found, unwritten=range(marks.begin, marks.end))

    def decoder(self, active: ActiveAdapter, rows: int, capacity: int) -> SoundDecoder:
        """A fresh decoder over windows of silence, for what chooses tokens itself; ``prefill`` reads them."""
        (taken,) = (value for value in self.graphs.bundle.manifest.inputs if value.name == "input_features")
        bins, frames = (int(size) for size in taken.shape[1:])
        before = self.speech.before(next(iter(self.speech.languages), "en").strip("<|>"), "transcribe")
        return SoundDecoder(self.graphs, active, self, np.zeros((rows, bins, frames), np.float32), before)
