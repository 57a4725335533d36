"""From text to tokens and, token by token, back: pieces of text that never split a character or a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from ...bundle import Bundle
from ...errors import InputError
from ..files import read_tokenizer, tokenizing
from ..text import is_text

#: How many tokens of the prompt the first piece is decoded with: some tokenizers drop a text's leading space.
_CONTEXT = 6
_UNFINISHED = "\ufffd"


class Tokens:
    """The bundle's tokenizer for generation: nothing is padded or cut."""

    def __init__(self, bundle: Bundle) -> None:
        self._tokenizer = read_tokenizer(bundle, "which generation from text needs")
        self._where = bundle.file("tokenizer.json")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The tokens of ``text``; ``special`` adds what the tokenizer puts around a text (a BOS token, say)."""
        if not is_text(text):
            raise InputError(f"{text!r:.200} is not a text (valid Unicode)")
        with tokenizing(self._where, "cannot encode a text"):
            found: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        with tokenizing(self._where, "cannot decode tokens"):
            text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


class TextPieces:
    """Turns tokens into pieces of text as they come.

    A piece is held back while its last character is unfinished, or while it could be the beginning of a stop string;
    a stop string itself never comes out. The pieces together are the text.
    """

    def __init__(self, tokens: Tokens, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._tokens = tokens
        self._ids = list(prompt[-_CONTEXT:])
        self._read = len(self._ids)
        self._start = 0
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What a token adds to the text, if anything yet; afterwards ``stopped`` says whether a stop string came."""
        self._ids.append(token)
        text = self._fresh()
        if text.endswith(_UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(text)

    def flush(self) -> str:
        """What was held back and comes out because generation has ended; nothing after a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._fresh(), last=True)
        self._start, self._read = self._read, len(self._ids)
        return text

    def _fresh(self) -> str:
        before = self._tokens.decode(self._ids[self._start : self._read])
        return self._tokens.decode(self._ids[self._start :])[len(before) :]

    def _release(self, text: str, last: bool = False) -> str:
        whole = self._held + text
        found = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return whole[: min(found)]
        if last:
            self._held = ""
            return whole
        held = max((_overlap(whole, stop) for stop in self._stops), default=0)
        self._held = whole[len(whole) - held :]
        return whole[: len(whole) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def check_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple; :class:`InputError` for an empty one, which would stop everything at once."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    for each in stops:
        if not isinstance(each, str) or not each:
            raise InputError(f"a stop string must be a text of at least one character, found {each!r}")
    return stops
