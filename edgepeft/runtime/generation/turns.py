"""The turns of a conversation that its context has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ...errors import ContextLengthError
from .chat import Message

T = TypeVar("T")

#: Share of the context that is kept free for an answer whose length nobody gave.
ANSWER_SHARE = 0.25


def without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """``messages`` less their oldest turn: a user's message and all that follow up to the user's next.

    System messages at the start stay, and so does the last turn: ``None`` where there is no other.
    """
    first = next((place for place, each in enumerate(messages) if each.get("role") != "system"), len(messages))
    turns = [place for place, each in enumerate(messages) if place > first and each.get("role") == "user"]
    return [*messages[:first], *messages[turns[0] :]] if turns else None


def fitted(
    messages: Sequence[Message], attempt: Callable[[Sequence[Message]], T], drop_oldest: bool
) -> tuple[list[Message], T]:
    """What ``attempt`` makes of ``messages``, less as many of the oldest turns as it takes; and those that are left.

    Raises:
        ContextLengthError: They do not fit, and none may be dropped, or the last turn alone is too long.
    """
    kept = list(messages)
    while True:
        try:
            return kept, attempt(kept)
        except ContextLengthError as error:
            shorter = without_oldest_turn(kept)
            if shorter is None:
                raise
            if not drop_oldest:
                raise ContextLengthError(
                    f"{error} Or let the conversation forget its oldest turns: conversation(drop_oldest=True)."
                ) from error
            kept = shorter
