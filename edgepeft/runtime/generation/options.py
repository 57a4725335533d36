"""What a caller may say about generating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict


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
