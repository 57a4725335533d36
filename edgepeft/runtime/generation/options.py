"""What a caller may say about generating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ...errors import InputError
from .draft import Draft


@dataclass(frozen=True)
class Options:
    """What a caller may say about generating; ``None`` leaves it to the model's files.

    ``chat``: whether texts go through the chat template as a user's message (messages always do); by default they do where
    there is a template. ``system`` is put before such a text. ``eos`` are further tokens that end a text, by text or number.
    ``tools``, ``documents``, ``enable_thinking`` and what ``chat_template_kwargs`` holds go to the chat template. ``draft``
    ``"prompt"``: drafts are looked up in prompt and answer, and several tokens are verified in one run.
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
    eos: int | str | Sequence[int | str] | None = None
    tools: Sequence[Any] | None = None
    documents: Sequence[Any] | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    draft: Draft | None = None

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What goes to the chat template beside the messages; :class:`InputError` for what is not a mapping with names."""
        more = self.chat_template_kwargs or {}
        if not isinstance(more, Mapping) or not all(isinstance(name, str) for name in more):
            raise InputError(f"chat_template_kwargs is a mapping of names to values, found {more!r:.200}")
        if taken := sorted({"messages", "add_generation_prompt"} & more.keys()):
            raise InputError(f"chat_template_kwargs: {taken[0]} is what the prompt itself says")
        for name, given in (("tools", self.tools), ("documents", self.documents)):
            if given is not None and (isinstance(given, (str, Mapping)) or not isinstance(given, Sequence)):
                raise InputError(f"{name} is a list, found {given!r:.200}")
        named = {"tools": self.tools, "documents": self.documents, "enable_thinking": self.enable_thinking}
        return {**more, **{name: value for name, value in named.items() if value is not None}}


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
    eos: int | str | Sequence[int | str] | None
    tools: Sequence[Any] | None
    documents: Sequence[Any] | None
    enable_thinking: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    draft: Draft | None
