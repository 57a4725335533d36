"""Streamed text: pieces are whole characters, stop strings never come out, and together they are the text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from causal import save_byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from edgepeft.bundle import Bundle, hash_file
from edgepeft.errors import InputError
from edgepeft.runtime.generation.tokens import TextPieces, Tokens, check_stops


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_byte_tokenizer(folder)
    manifest: Any = SimpleNamespace(files={"tokenizer.json": hash_file(folder / "tokenizer.json")})
    return Tokens(Bundle(path=folder, manifest=manifest))


def stream(tokens: Tokens, ids: list[int], stops: tuple[str, ...] = (), prompt: str = "the ") -> tuple[list[str], bool]:
    """The pieces of ``ids`` after a prompt, the flush included, and whether a stop string came."""
    pieces = TextPieces(tokens, tokens.encode(prompt, special=True), stops)
    found = []
    for token in ids:
        found.append(pieces.push(token))
        if pieces.stopped:
            break
    return [*found, pieces.flush()], pieces.stopped


@given(text=st.text(max_size=30))
def test_pieces_are_the_text_and_never_half_a_character(tokens: Tokens, text: str) -> None:
    ids = tokens.encode(text, special=False)
    pieces, _ = stream(tokens, ids)
    assert "".join(pieces) == tokens.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(3, 290), max_size=30))
def test_bytes_that_are_no_text_come_out_too(tokens: Tokens, ids: list[int]) -> None:
    prompt = tokens.encode("the ", special=True)
    assert "".join(stream(tokens, ids)[0]) == tokens.decode([*prompt, *ids])[len("the ") :]


@given(text=st.text(alphabet="ab", max_size=24), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_first_stop_string_ends_the_text(tokens: Tokens, text: str, stops: list[str]) -> None:
    # One token a character: a stop string always spans several.
    ids = [token for character in text for token in tokens.encode(character, special=False)]
    pieces, stopped = stream(tokens, ids, tuple(stops))
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    assert stopped == bool(ends)
    if ends:
        seen = text[: min(ends)]
        begin = min(place for stop in stops if (place := seen.find(stop)) >= 0)
        assert "".join(pieces) == seen[:begin]
    else:
        assert "".join(pieces) == text


def test_a_stop_string_inside_one_token(tokens: Tokens) -> None:
    ids = tokens.encode("the very good", special=False)
    assert max(len(tokens.decode([token])) for token in ids) > 2  # merged words
    pieces, stopped = stream(tokens, ids, ("er",))
    assert (stopped, "".join(pieces)) == (True, "the v")


def test_what_may_begin_a_stop_string_is_held_back_and_then_given(tokens: Tokens) -> None:
    pieces = TextPieces(tokens, [], ("END!",))
    given_out = [pieces.push(token) for token in tokens.encode("xEND", special=False)]
    assert "".join(given_out) == "x"
    assert pieces.flush() == "END"


def test_special_tokens_are_left_out(tokens: Tokens) -> None:
    assert "".join(stream(tokens, [1, *tokens.encode("book", special=False), 2])[0]) == "book"


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [3]])
def test_stop_strings_that_are_refused(stop: Any) -> None:
    with pytest.raises(InputError, match="stop string"):
        check_stops(stop)


def test_stop_strings() -> None:
    assert check_stops(None) == ()
    assert check_stops("a") == ("a",)
    assert check_stops(["a", "bc"]) == ("a", "bc")


def test_half_a_surrogate_is_no_text(tokens: Tokens, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="valid Unicode"):
        tokens.encode("\ud800", special=True)
