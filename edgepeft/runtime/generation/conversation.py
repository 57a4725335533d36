"""A conversation: what the cache holds of the last turn is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Unpack

from ...errors import InputError
from ..active import ActiveAdapter
from .chat import Message
from .defaults import NEW_TOKENS
from .encoder import Prompt
from .generator import Generator
from .loop import Generation, Plan, Run, Steps
from .options import GenerateOptions, Options
from .stream import TextStream
from .turns import ANSWER_SHARE, fitted


@dataclass(frozen=True)
class _Turn:
    """A prompt that fits, with the adapter it was encoded for."""

    started: float
    generator: Generator
    active: ActiveAdapter
    tokens: list[int]
    plan: Plan


class Conversation:
    """A chat, or a growing text, whose keys and values stay from call to call.

    Of each prompt, the tokens that the cache already holds from its beginning on are reused, as far as they were computed
    with the same adapter, blend and scale. A conversation of a view stays with it; one of a runtime takes at each turn the
    adapter in use, and after :meth:`Runtime.use` of another one the cache is dropped, since its keys and values belong to the
    old adapter. Answers are the same as without a cache, up to rounding. One call at a time.

    With ``drop_oldest`` a conversation that outgrows the context goes on without its oldest turns, each a user's message and
    its answer; the system message stays. Room is left for ``max_new_tokens``, or for a quarter of the context.
    """

    def __init__(
        self,
        current: Callable[[], tuple[Generator, ActiveAdapter]],
        system: str | None = None,
        *,
        drop_oldest: bool = False,
    ) -> None:
        self._drop_oldest = drop_oldest
        self._dropped = 0
        # What a turn runs with: the adapter, and the tokenizer and template that belong to it.
        self._current = current
        self._messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._decoder: Steps | None = None
        self._identity: tuple[Any, ...] | None = None
        self._cached: list[int] = []
        self._busy = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, the system message first where there is one; less the turns that were dropped."""
        return tuple(self._messages)

    @property
    def dropped(self) -> int:
        """Messages that were dropped, since the context had no room for them."""
        return self._dropped

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache."""
        return len(self._cached)

    def say(self, text: str, **options: Unpack[GenerateOptions]) -> Generation:
        """The answer to a user's message; both become part of the conversation. Options as for ``Runtime.generate``."""
        stream = self.say_stream(text, **options)
        for _ in stream:
            pass
        return stream.result

    def say_stream(self, text: str, **options: Unpack[GenerateOptions]) -> TextStream:
        """:meth:`say` as pieces of text. What was said counts when the stream ends, cancelled or not."""
        if not isinstance(text, str) or not text:
            raise InputError("a message needs at least one character")
        whole: list[Message] = [*self._messages, {"role": "user", "content": text}]
        chosen = Options(**options)
        messages, ready = fitted(whole, lambda each: self._plan(each, chosen, self._drop_oldest), self._drop_oldest)

        def said(result: Generation) -> None:
            self._messages = [*messages, {"role": "assistant", "content": result.text}]
            self._dropped += len(whole) - len(messages)

        return self._stream(ready, said)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """Generate from a text or messages as ``Runtime.generate`` does, reusing the cache; ``messages`` stay as they are."""
        stream = self._stream(self._plan(prompt, Options(**options)), lambda result: None)
        for _ in stream:
            pass
        return stream.result

    def _plan(self, prompt: Prompt, options: Options, room_for_answer: bool = False) -> _Turn:
        """What a prompt's run needs; :class:`ContextLengthError` where it does not fit."""
        if self._busy:
            raise InputError("this conversation is still answering; read its stream to the end, or close it")
        started = perf_counter()
        generator, active = self._current()
        _ = generator.graphs.session  # a closed model is refused, though the cache still holds its session
        tokens = generator.encode(prompt, options, active.prefix_length)
        plan = generator.plan([tokens], options, active.prefix_length)
        room = generator.prompts.room(active.prefix_length)
        if room_for_answer and options.max_new_tokens is None and room is not None:
            wanted = min(generator.defaults.new_tokens or NEW_TOKENS, max(1, int(room * ANSWER_SHARE)))
            generator.prompts.new_tokens(len(tokens), wanted, active.prefix_length)
        return _Turn(started, generator, active, tokens, plan)

    def _stream(self, turn: _Turn, said: Callable[[Generation], None]) -> TextStream:
        generator, active, tokens, plan = turn.generator, turn.active, turn.tokens, turn.plan
        decoder, reused = self._ready(generator, active, tokens, len(tokens) + plan.max_new_tokens)
        run = Run(
            decoder,
            [tokens],
            [plan],
            [active.name or None],
            turn.started,
            reused,
            variant=generator.graphs.variant,
            path=generator.graphs.bundle.path,
        )
        self._busy = True

        def ended(result: Generation, completed: bool) -> None:
            self._busy = False
            # The decoder knows how far it came: the last token is chosen, not fed, and a prompt may have been broken off.
            self._cached = [*tokens, *result.tokens][: decoder.width]
            if completed:
                said(result)

        return TextStream(run, ended)

    def _ready(
        self, generator: Generator, active: ActiveAdapter, tokens: Sequence[int], capacity: int
    ) -> tuple[Steps, int]:
        """A decoder that holds a prefix of ``tokens``, and that prefix's length; the last token is always computed."""
        if self._decoder is None or self._identity != active.identity:
            self._decoder = generator.decoder(active, 1, capacity)
            self._identity, self._cached = active.identity, []
        shared = 0
        for mine, theirs in zip(self._cached, tokens[:-1], strict=False):
            if mine != theirs:
                break
            shared += 1
        self._decoder.truncate(shared)
        self._cached = self._cached[:shared]
        return self._decoder, shared
