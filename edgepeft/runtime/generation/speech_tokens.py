"""What a model of speech says about its tokens: languages, tasks, silence, timestamps, and what an answer never holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ...bundle import Bundle, OwnText
from ...errors import BundleError, InputError
from ..files import read_object
from .log_mel import LogMel
from .timestamps import FRAMES, Timestamps, find_timestamps
from .tokens import Tokens

#: What is written: what was said, or what it means in English.
Task = Literal["transcribe", "translate"]


@dataclass(frozen=True)
class SpeechTokens:
    """What ``generation_config.json`` says about the tokens that an answer begins with, and about those that it never holds.

    ``languages`` and ``tasks`` are empty for a model of one language. ``silence`` is the token whose probability behind ``start``
    says that nobody speaks; it and ``timestamps`` are ``None`` where the vocabulary has none.
    """

    start: int
    languages: dict[str, int]
    tasks: dict[str, int]
    plain: int | None
    never: tuple[int, ...]
    never_first: tuple[int, ...]
    silence: int | None
    timestamps: Timestamps | None

    def before(self, language: str | None, task: Task, timestamps: bool = False) -> list[int | None]:
        """The tokens before an answer, with timestamps or without, ``None`` in place of a language that is to be heard.

        Raises:
            InputError: The model has no such language or task, or no timestamps.
        """
        if task not in get_args(Task):
            raise InputError(f"task must be one of {', '.join(get_args(Task))}, found {task!r:.80}")
        if timestamps and self.timestamps is None:
            raise InputError(
                "this model's vocabulary has no timestamps (<|0.00|> and the tokens behind it): leave out timestamps "
                "(--timestamps, --subtitles)"
            )
        end = [] if timestamps or self.plain is None else [self.plain]
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


#: What the token for silence is called: by OpenAI today, and before.
_SILENCE = ("<|nospeech|>", "<|nocaptions|>")


def read_speech_tokens(
    bundle: Bundle, own: OwnText, start: int | None, tokenizer: Tokens, log_mel: LogMel
) -> SpeechTokens:
    """The tokens in a bundle's ``generation_config.json`` and tokenizer, or in an adapter's own.

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
    none, latest = said.get("no_timestamps_token_id"), said.get("max_initial_timestamp_index")
    plain = None if none is None else token(none, "no_timestamps_token_id")
    silence = next(filter(None, map(tokenizer.token_id, _SILENCE)), None)
    return SpeechTokens(
        start=token(start, "decoder_start_token_id"),
        languages=named("lang_to_id"),
        tasks=named("task_to_id"),
        plain=plain,
        never=tokens("suppress_tokens"),
        never_first=tokens("begin_suppress_tokens"),
        silence=None if silence is None or silence >= size else silence,
        timestamps=find_timestamps(
            tokenizer,
            size,
            plain,
            None if latest is None else token(latest, "max_initial_timestamp_index"),
            log_mel.samples,
            FRAMES * log_mel.hop,
        ),
    )
