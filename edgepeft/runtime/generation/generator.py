"""What a bundle needs to generate, and the calls behind ``Runtime.generate``, ``stream`` and ``conversation``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Pieces
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypedDict

from ...errors import InputError
from ..active import ActiveAdapter
from .chat import ChatTemplate
from .decoder import Decoder
from .defaults import NEW_TOKENS, Defaults
from .encoder import Prompt, PromptEncoder
from .loop import Generation, Plan, Run, Steps
from .signature import Signature, read_signature
from .tokens import Tokens, check_stops

if TYPE_CHECKING:
    from ..session import Runtime


@dataclass(frozen=True)
class Options:
    """What a caller may say about generating; ``None`` leaves it to the model's files.

    ``chat``: whether texts go through the chat template as a user's message (messages always do); by default they do where
    the bundle has a template. ``system`` is put before such a text.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    chat: bool | None = None
    system: str | None = None


class GenerateOptions(TypedDict, total=False):
    """:class:`Options` as keyword arguments."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    chat: bool | None
    system: str | None


class Generator:
    """The parts of a runtime that generation needs, read once."""

    #: Whether what is generated goes on from the prompt.
    continues = True
    #: What turns prompts into tokens.
    encoder: type[PromptEncoder] = PromptEncoder

    def __init__(self, runtime: Runtime) -> None:
        self.prompts = self.encoder(runtime.bundle)
        self.runtime = runtime
        self.tokens: Tokens = self.prompts.tokens
        self.defaults: Defaults = self.prompts.defaults

    @cached_property
    def signature(self) -> Signature:
        """What the decoder graph takes and returns."""
        return read_signature(self.runtime.session)

    @property
    def template(self) -> ChatTemplate | None:
        """The bundle's chat template."""
        return self.prompts.template

    def encode(self, prompt: Prompt, options: Options, before: int = 0) -> list[int]:
        """A prompt's tokens: see :meth:`PromptEncoder.encode`."""
        return self.prompts.encode(prompt, chat=options.chat, system=options.system, before=before)

    def plan(self, prompts: Sequence[Sequence[int]], options: Options, before: int = 0) -> Plan:
        """When to stop and how to choose, for these prompts."""
        longest = max(map(len, prompts))
        if options.max_new_tokens is None:
            left = self.prompts.left(longest, before)
            new = self.defaults.new_tokens or NEW_TOKENS
            new = new if left is None else min(new, left)
        else:
            new = self.prompts.new_tokens(longest, options.max_new_tokens, before)
        sampling = self.defaults.sampling(
            options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed
        )
        return Plan(sampling=sampling, max_new_tokens=new, stops=check_stops(options.stop), eos=self.defaults.eos)

    def decoder(self, active: ActiveAdapter, rows: int, capacity: int) -> Steps:
        """A fresh decoder with the adapter's tensors bound and its states in the cache; ``capacity`` tokens follow them."""
        feeds = self.runtime.slot_values(active)
        whole = capacity + active.prefix_length
        return Decoder(self.runtime.session, self.signature, rows, feeds, whole, prefix=active.prefix)

    def run(
        self,
        prompts: Sequence[Prompt],
        options: Options,
        active: ActiveAdapter,
        adapters: Sequence[str | None],
        first_row: int = 0,
    ) -> Run:
        """A run over a batch of prompts, not begun."""
        started = perf_counter()
        before = active.prefix_length
        encoded = [self.encode(prompt, options, before) for prompt in prompts]
        plan = self.plan(encoded, options, before)
        # The last token is never fed, but a batch's mask is as wide as its longest prompt.
        capacity = max(map(len, encoded)) + plan.max_new_tokens
        decoder = self.decoder(active, len(encoded), capacity)
        return Run(
            decoder,
            encoded,
            plan,
            self.tokens,
            adapters,
            started,
            first_row=first_row,
            continues=self.continues,
            variant=self.runtime.variant,
            path=self.runtime.bundle.path,
        )


class TextStream:
    """Pieces of text as they are generated; iterate it once. No piece splits a character or holds a stop string.

    ``cancel`` ends it, from any thread; ``result`` is there when it has ended.
    """

    def __init__(self, run: Run, ended: Callable[[Generation, bool], None] = lambda result, completed: None) -> None:
        self._run = run
        self._ended = ended
        self._result: Generation | None = None
        self._begun = False
        self._pieces = self._iterate()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def _iterate(self) -> Pieces[str, None, None]:
        self._begun = True
        completed = False
        try:
            for _, piece in self._run:
                yield piece
            completed = True
        finally:
            self._end(completed)  # also where the reader leaves early, with what was generated until then

    def _end(self, completed: bool) -> None:
        (self._result,) = self._run.results()
        self._ended(self._result, completed)

    def cancel(self) -> None:
        """Stop after the token under way; what was generated stays."""
        self._run.cancel()

    def close(self) -> None:
        """Stop here and give up the rest."""
        self._pieces.close()
        if not self._begun:
            self._begun = True
            self._end(completed=False)

    @property
    def result(self) -> Generation:
        """What was generated; :class:`InputError` before the stream has ended."""
        if self._result is None:
            raise InputError("the stream has not ended; read it to its end, or cancel it and read the rest")
        return self._result


def is_batch(prompt: Any) -> bool:
    """Whether ``prompt`` is a list of prompts: texts, or chats that are lists of messages."""
    if isinstance(prompt, (str, Mapping)) or not isinstance(prompt, Sequence):
        return False
    return not prompt or not isinstance(prompt[0], Mapping)


def generate(
    runtime: Runtime, prompt: Any, adapters: Sequence[str | None] | None, batch_size: int, options: Mapping[str, Any]
) -> Generation | list[Generation]:
    """``Runtime.generate``."""
    checked, generator, active = Options(**options), runtime.generator, runtime.snapshot()
    if not is_batch(prompt):
        if adapters is not None:
            raise InputError("adapters by row are for a list of prompts; choose one prompt's adapter with use()")
        return _collect(generator.run([prompt], checked, active, [active.name or None]))[0]
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number of at least 1, found {batch_size!r}")
    if not prompt:
        raise InputError("no prompts; give at least one")
    if adapters is not None and len(adapters) != len(prompt):
        raise InputError(f"{len(adapters)} adapters for {len(prompt)} prompts; give one for each, None for the base")
    found: list[Generation] = []
    for start in range(0, len(prompt), batch_size):
        part = list(prompt[start : start + batch_size])
        if adapters is None:
            found += _collect(generator.run(part, checked, active, [active.name or None] * len(part), start))
        else:
            names = list(adapters[start : start + batch_size])
            found += _collect(generator.run(part, checked, runtime.mixed(names), names, start))
    return found


def _collect(run: Run) -> list[Generation]:
    for _ in run:
        pass
    return run.results()
