"""Writing down speech with Whisper: a window of sound is read once, and the decoder writes behind tokens that say how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np

from ...bundle import NO_TEXT, Bundle, OwnText
from ...errors import BundleError, InputError
from ..active import ActiveAdapter
from ..files import read_object
from .encoder import Prompt, PromptEncoder
from .encoder_decoder import CrossedDecoder
from .generator import Generator
from .graphs import Graphs
from .log_mel import LogMel, read_log_mel
from .loop import Plan, Run
from .options import Options

#: What is written: what was said, or what it means in English.
Task = Literal["transcribe", "translate"]


@dataclass(frozen=True)
class SpeechTokens:
    """What ``generation_config.json`` says about the tokens that an answer begins with, and about those that it never holds.

    ``languages`` and ``tasks`` are empty for a model of one language.
    """

    start: int
    languages: dict[str, int]
    tasks: dict[str, int]
    plain: int | None
    never: tuple[int, ...]
    never_first: tuple[int, ...]

    def before(self, language: str | None, task: Task) -> list[int | None]:
        """The tokens before an answer, ``None`` in place of a language that is to be heard.

        Raises:
            InputError: The model has no such language or task.
        """
        if task not in get_args(Task):
            raise InputError(f"task must be one of {', '.join(get_args(Task))}, found {task!r:.80}")
        end = [] if self.plain is None else [self.plain]
        if not self.languages:
            if language not in {None, "en"} or task != "transcribe":
                raise InputError(
                    f"this model transcribes one language: language={language!r:.80} and task={task!r} are for multilingual ones"
                )
            return [self.start, *end]
        if task not in self.tasks:
            raise InputError(f"this model's generation_config.json has no token for task {task!r}")
        chosen = None
        if language is not None:
            chosen = self.languages.get(f"<|{str(language).lower()}|>")
            if chosen is None:
                known = ", ".join(sorted(name.strip("<|>") for name in self.languages))
                raise InputError(f"language {language!r:.80} is none of this model's: {known}")
        return [self.start, chosen, self.tasks[task], *end]


def read_speech_tokens(bundle: Bundle, own: OwnText, start: int | None) -> SpeechTokens:
    """The tokens in a bundle's ``generation_config.json``, or in an adapter's own.

    Raises:
        BundleError: A token is no number of the vocabulary, or there is none to begin with.
    """
    said, config = read_object(bundle, "generation_config.json", own), read_object(bundle, "config.json")
    where = bundle.file(own.path("generation_config.json"))
    size = int(config.get("vocab_size") or 0)

    def token(value: Any, what: str) -> int:
        if type(value) is not int or not 0 <= value < size:
            raise BundleError(f"{where}: {what} is {value!r:.80}, which is no token of the {size} that the model has")
        return value

    def tokens(name: str) -> tuple[int, ...]:
        value = said.get(name, config.get(name)) or []
        if not isinstance(value, list):
            raise BundleError(f"{where}: {name} must be a list of tokens, found {value!r:.80}")
        return tuple(token(each, name) for each in value if each != -1)  # what transformers writes for "none"

    def named(name: str) -> dict[str, int]:
        value = said.get(name) or {}
        if not isinstance(value, dict):
            raise BundleError(f"{where}: {name} must be an object of names and tokens, found {value!r:.80}")
        return {key: token(each, f"{name}.{key}") for key, each in value.items()}

    if start is None:
        raise BundleError(f"{where} names no decoder_start_token_id to begin with")
    plain = said.get("no_timestamps_token_id")
    return SpeechTokens(
        start=token(start, "decoder_start_token_id"),
        languages=named("lang_to_id"),
        tasks=named("task_to_id"),
        plain=None if plain is None else token(plain, "no_timestamps_token_id"),
        never=tokens("suppress_tokens"),
        never_first=tokens("begin_suppress_tokens"),
    )


class SoundDecoder(CrossedDecoder):
    """A batch of windows of sound being written down; ``features`` are their log-mel frames ``[rows, bins, frames]``.

    ``before`` are the tokens before the answers; where a language is ``None`` the likeliest one is taken for each row.
    """

    def __init__(
        self,
        graphs: Graphs,
        active: ActiveAdapter,
        writer: Transcriber,
        features: np.ndarray,
        before: Sequence[int | None],
    ) -> None:
        super().__init__(graphs, active, writer.defaults)
        self._features, self._before, self._speech = features, before, writer.speech
        #: The language of each row, once it was heard; ``None`` for a model of one language.
        self.languages: list[str | None] = [None] * len(features)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read the windows; logits of the first token of each answer, ``[rows, vocabulary]``."""
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
        return self._without(self.feed(tokens), (*self._speech.never, *self._speech.never_first))

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed one token for each row; the next logits ``[rows, vocabulary]``."""
        return self._without(super().step(tokens), self._speech.never)

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
        self.speech = read_speech_tokens(graphs.bundle, own, self.defaults.start)
        self.log_mel: LogMel = read_log_mel(graphs.bundle)

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
        return super().plan(prompts, options, before)

    def decoder(self, active: ActiveAdapter, rows: int, capacity: int) -> SoundDecoder:
        """A fresh decoder over windows of silence, for what chooses tokens itself; ``prefill`` reads them."""
        (taken,) = (value for value in self.graphs.bundle.manifest.inputs if value.name == "input_features")
        bins, frames = (int(size) for size in taken.shape[1:])
        before = self.speech.before(next(iter(self.speech.languages), "en").strip("<|>"), "transcribe")
        return SoundDecoder(self.graphs, active, self, np.zeros((rows, bins, frames), np.float32), before)

    def hear(
        self,
        waves: Sequence[np.ndarray],
        options: Options,
        active: ActiveAdapter,
        adapters: Sequence[str | None],
        language: str | None,
        task: Task,
    ) -> tuple[Run, SoundDecoder]:
        """A run over windows of sound ``[samples]``, not begun, and its decoder, which knows the languages afterwards."""
        started = perf_counter()
        writers = [self.graphs.generator_of(active.text_of(row)) for row in range(len(waves))]
        before = self.speech.before(language, task)
        prompts = [[self.speech.start] * len(before) for _ in waves]
        plans = [writer.plan(prompts, options) for writer in writers]
        features = np.stack([self.log_mel(wave) for wave in waves])
        decoder = SoundDecoder(self.graphs, active, self, features, before)
        run = Run(
            decoder, prompts, plans, adapters, started, continues=False, variant=self.graphs.variant, path=self.graphs.bundle.path
        )  # fmt: skip
        return run, decoder
