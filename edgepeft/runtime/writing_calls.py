"""The calls of a view that write text, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, overload

import numpy as np

from ..errors import InputError
from .active import ActiveAdapter
from .arrays import Adapters
from .described import Chosen, Described
from .generation import Conversation, GenerateOptions, Generation, Generator, Options, Prompt, TextStream
from .generation.chat import Message
from .generation.loop import Steps


class WritingCalls(Described):
    """``generate``, ``stream``, ``conversation`` and ``decoder``: for bundles whose task is to write."""

    __slots__ = ()

    @overload
    def generate(  # type: ignore[overload-overlap] # a text is a sequence of prompts to mypy
        self,
        prompt: str | Sequence[Message] | np.ndarray,
        *,
        adapters: None = None,
        batch_size: int = 8,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, adapters: Adapters | None = None, batch_size: int = 8,
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]: ...  # fmt: skip

    def generate(
        self, prompt: Any, *, adapters: Adapters | None = None, batch_size: int = 8,
        **options: Unpack[GenerateOptions],
    ) -> Generation | list[Generation]:  # fmt: skip
        """Generate from a text, from messages, from an array of token ids, or from each of a list of these.

        A text goes through the bundle's chat template where it has one, unless ``chat=False``; ``system`` is put before it.
        Token ids ``[tokens]`` are taken as they are. Other options: ``max_new_tokens`` (256, or what the context leaves),
        ``stop`` strings, ``temperature`` (0: greedy), ``top_k``, ``top_p``, ``repetition_penalty``, ``seed``; what is not given
        comes from ``generation_config.json``. ``draft="prompt"`` looks up drafts in prompt and answer. Lists run in batches of
        ``batch_size``. Raises :class:`InputError` for what the
        model or the options cannot do.
        """
        view = self.view
        return _generator(view).generate(prompt, view.active, adapters, batch_size, Options(**options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> TextStream:
        """:meth:`generate` from one prompt, as pieces of text while they come; options are the same."""
        view = self.view
        run = _generator(view).run([prompt], Options(**options), view.active, [view.name])
        return TextStream(run)

    def conversation(self, system: str | None = None, *, drop_oldest: bool = False) -> Conversation:
        """A conversation that keeps its keys and values from turn to turn.

        A view's conversation stays with the view. A runtime's takes, at each turn, the adapter that is in use then.

        Args:
            system: Its system message.
            drop_oldest: Go on without the oldest turns where the context has no room for all, in place of
                :class:`ContextLengthError`. A turn is a user's message and its answer; the system message stays.

        Raises:
            InputError: The bundle's task is not to write, or it is an encoder-decoder.
        """
        if not _generator(self.view).continues:
            raise InputError(f"{self.bundle.path} is an encoder-decoder: it has no conversation to go on with")

        def current() -> tuple[Generator, ActiveAdapter]:
            now = self.view
            return _generator(now), now.active

        return Conversation(current, system, drop_oldest=drop_oldest)

    def decoder(self, rows: int, capacity: int) -> Steps:
        """The steps that :meth:`generate` runs, for callers that choose tokens themselves.

        Args:
            rows: Sequences in the batch.
            capacity: Tokens, of prompt and answer together, that the cache has room for before it grows.

        Returns:
            A fresh cache with the adapter's tensors bound: ``prefill`` prompts, then ``step`` token by token. One thread at a time.
        """
        view = self.view
        return _generator(view).decoder(view.active, rows, capacity)


def _generator(view: Chosen) -> Generator:
    return view.engine.generator_of(view.active.text)
