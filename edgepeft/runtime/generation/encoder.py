"""From a prompt to the tokens a model goes on from: its chat template, its tokenizer, the room its context leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ...bundle import NO_TEXT, Bundle, OwnText
from ...errors import ContextLengthError, InputError
from .chat import NO_ARGUMENTS, ChatTemplate, Message, TemplateArguments, check_messages, read_chat_template
from .defaults import Defaults, read_defaults
from .tokens import Tokens

#: A text, the messages of a chat, or token ids ``[tokens]``.
Prompt = str | Sequence[Message] | np.ndarray


class PromptEncoder:
    """The tokenizer, template and context of a causal language model's bundle. Opens no session."""

    task = "text-generation"

    def __init__(self, bundle: Bundle, own: OwnText = NO_TEXT) -> None:
        task = bundle.manifest.task
        if task != self.task:
            raise InputError(
                f"{bundle.path} is for {task}; generating needs a text-generation bundle (a causal language model)"
            )
        self._bundle = bundle
        self._own = own
        self.tokens = Tokens(bundle, own)
        self.defaults: Defaults = read_defaults(bundle, own)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template: the adapter's own, else the bundle's."""
        return read_chat_template(self._bundle, self._own)

    def encode(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        system: str | None = None,
        before: int = 0,
        arguments: TemplateArguments = NO_ARGUMENTS,
    ) -> list[int]:
        """A prompt's tokens. Raises :class:`InputError` for an empty one or one as long as the context.

        ``chat``: whether a text goes through the template as a user's message, behind ``system``; by default it does where
        there is one. ``before`` places of the context are taken by the adapter's states. ``arguments`` go to the template.
        """
        templated = not isinstance(prompt, np.ndarray) and (
            not isinstance(prompt, str) or (self.template is not None if chat is None else chat)
        )
        if arguments and not templated:
            raise InputError(
                f"{', '.join(arguments)} is for the chat template, and this prompt goes to the model as it is; give messages or "
                "a text of a model that has a template, without --raw (in Python chat=False)"
            )
        if isinstance(prompt, np.ndarray):
            if chat or system is not None:
                raise InputError("token ids go to the model as they are: no chat template or system message")
            return self._fits(token_ids(prompt), before)
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("the prompt is empty; give at least one character")
            if not templated:
                if system is not None:
                    raise InputError(
                        "a system message needs the chat template, and this prompt is given as it is (raw)"
                    )
                return self._fits(self.tokens.encode(prompt, special=True), before)
            first = [] if system is None else [{"role": "system", "content": system}]
            messages: Sequence[Message] = [*first, {"role": "user", "content": prompt}]
        else:
            if chat is False:
                raise InputError("messages need the chat template; give a text where chat=False")
            messages = prompt
        check_messages(messages)
        if self.template is None:
            raise InputError(
                f"{self._bundle.path} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json); give a plain prompt (--raw, in Python chat=False)"
            )
        # The template writes the special tokens itself.
        return self._fits(self.tokens.encode(self.template.render(messages, arguments), special=False), before)

    def _fits(self, tokens: list[int], before: int) -> list[int]:
        limit = self.room(before)
        if not tokens:
            raise InputError("the prompt has no tokens; give at least one word")
        if limit is not None and len(tokens) >= limit:
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens; this model's context is {limit} tokens{beside(before)}, prompt and answer "
                "together. Shorten the prompt."
            )
        return tokens

    def room(self, before: int) -> int | None:
        """The context less what stands before the sequence."""
        return None if self.defaults.context is None else self.defaults.context - before

    def left(self, longest: int, before: int) -> int | None:
        """How many tokens fit behind a prompt of ``longest`` tokens."""
        limit = self.room(before)
        return None if limit is None else limit - longest

    def new_tokens(self, longest: int, wanted: int, before: int) -> int:
        """``wanted``, where a prompt of ``longest`` tokens leaves room for them; :class:`InputError` otherwise."""
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise InputError(f"max_new_tokens must be a whole number of at least 1, found {wanted!r}")
        left = self.left(longest, before)
        if left is not None and wanted > left:
            raise ContextLengthError(self._too_many(longest, wanted, left, before))
        return wanted

    def _too_many(self, longest: int, wanted: int, left: int, before: int) -> str:
        return (
            f"a prompt of {longest} tokens and {wanted} new ones make {longest + wanted}; this model's context is "
            f"{left + longest} tokens{beside(before)}. Shorten the prompt, or ask for at most {left} new tokens."
        )


def token_ids(prompt: np.ndarray) -> list[int]:
    """Token ids as a list; :class:`InputError` for an array that is not a row of at least one whole number from 0 up."""
    if prompt.ndim != 1 or not prompt.size or not np.issubdtype(prompt.dtype, np.integer) or prompt.min() < 0:
        raise InputError(
            f"token ids are an array [tokens] of whole numbers from 0 up, found {prompt.dtype.name} of shape {prompt.shape}; give "
            "a batch as a list of such arrays"
        )
    return [int(token) for token in prompt]


def beside(before: int) -> str:
    """What messages about the context say of an adapter's states."""
    return f" beside the adapter's {before} states" if before else ""
