"""Conversations that outgrow the context: what is dropped, what stays, and what is said where nothing may be dropped."""

from __future__ import annotations

from typing import Any

import pytest
from causal import CONTEXT, build_causal_bundle

from edgepeft import runtime
from edgepeft.errors import ContextLengthError, InputError
from edgepeft.runtime import Runtime
from edgepeft.runtime.generation.turns import without_oldest_turn

SYSTEM = {"role": "system", "content": "be good"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return runtime.open(build_causal_bundle(tmp_path_factory.mktemp("turns")), threads=1)


def says(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": str(place)} for place, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "left"),
    [
        (("user",), None),
        (("system", "user"), None),
        (("system", "user", "assistant", "user"), [0, 3]),
        (("user", "assistant", "user", "assistant", "user"), [2, 3, 4]),
        (("system", "system", "user", "assistant", "tool", "assistant", "user"), [0, 1, 6]),
        (("assistant", "user", "assistant", "user"), [1, 2, 3]),
        ((), None),
    ],
)
def test_a_turn_is_a_users_message_and_what_follows(roles: tuple[str, ...], left: list[int] | None) -> None:
    messages = says(*roles)
    assert without_oldest_turn(messages) == (None if left is None else [messages[place] for place in left])


@pytest.mark.parametrize("adapter", [None, "wide"])
@pytest.mark.parametrize("system", [None, "be good"])
def test_the_oldest_turns_go_and_the_answers_are_those_without_them(
    model: Runtime, adapter: str | None, system: str | None
) -> None:
    view = model.adapter(adapter)
    chat = view.conversation(system, drop_oldest=True)
    first = [] if system is None else [SYSTEM]
    for turn in range(8):
        text = f"the film {turn} " * 3
        said = chat.say(text, max_new_tokens=10)
        messages = list(chat.messages)
        assert messages[: len(first)] == first
        assert messages[-2:] == [{"role": "user", "content": text}, {"role": "assistant", "content": said.text}]
        assert [each["role"] for each in messages[len(first) :]] == ["user", "assistant"] * (
            (len(messages) - len(first)) // 2
        )
        assert len(messages) + chat.dropped == len(first) + 2 * (turn + 1)
        assert said.tokens == view.generate(messages[:-1], max_new_tokens=10).tokens
    assert chat.dropped >= 4
    # As few as it takes: one turn more would not have fitted.
    whole = [
        *first,
        {"role": "user", "content": "x" * 20},
        *chat.messages[len(first) :],
        {"role": "user", "content": text},
    ]
    with pytest.raises(ContextLengthError):
        view.generate(whole, max_new_tokens=60)


def test_without_the_option_the_error_offers_it(model: Runtime) -> None:
    chat = model.conversation("be good")
    for _ in range(3):
        chat.say("the film", max_new_tokens=10)
    before = chat.messages
    with pytest.raises(ContextLengthError, match=r"context is .*conversation\(drop_oldest=True\)"):
        chat.say("the film " * 20, max_new_tokens=20)
    assert chat.dropped == 0
    assert chat.messages == before, "a turn that is refused changes nothing"


def test_a_turn_that_is_too_long_by_itself(model: Runtime) -> None:
    for drop in (True, False):
        chat = model.conversation("be good", drop_oldest=drop)
        chat.say("a film", max_new_tokens=4)
        with pytest.raises(InputError, match="Shorten the prompt") as caught:
            chat.say("good " * CONTEXT, max_new_tokens=4)
        assert ("drop_oldest" in str(caught.value)) == (not drop)
        assert (len(chat.messages), chat.dropped) == (3, 0)


def test_room_for_an_answer_of_any_length(model: Runtime) -> None:
    """Without a number, a quarter of the context stays free, so that no answer is a single token long."""
    chat = model.conversation(drop_oldest=True)
    template = model.generator
    for turn in range(5):
        said = chat.say(f"the film {turn} " * 2)
        prompt = template.prompts.encode(list(chat.messages[:-1]))
        assert CONTEXT - len(prompt) >= CONTEXT // 4
        assert said.finish_reason in {"eos", "length"}
    assert chat.dropped > 0


def test_a_stream_that_is_left_drops_nothing(model: Runtime) -> None:
    chat = model.conversation(drop_oldest=True)
    while chat.dropped == 0:
        before = chat.messages
        chat.say("the film " * 4, max_new_tokens=10)
    before, dropped = chat.messages, chat.dropped
    stream = chat.say_stream("the book " * 4, max_new_tokens=10)
    next(stream)
    stream.close()
    assert (chat.messages, chat.dropped) == (before, dropped)
