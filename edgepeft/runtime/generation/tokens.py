"""From text to tokens and, token by token, back: pieces of text that never split a character or a stop string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from ...bundle import NO_TEXT, Bundle, OwnText
from ...bundle.slots import LIMIT
from ...errors import InputError
from ..files import read_tokenizer, tokenizing
from ..text import is_text

#: How many tokens of the prompt the first piece is decoded with: some tokenizers drop a text's leading space.
_CONTEXT = 6
_UNFINISHED = "\ufffd"


class Tokens:
    """A bundle's tokenizer, or an adapter's own, for generation: nothing is padded or cut."""

    def __init__(self, bundle: Bundle, own: OwnText = NO_TEXT) -> None:
        self._tokenizer = read_tokenizer(bundle, "which generation from text needs", own)
        self._where = bundle.file(own.path("tokenizer.json"))
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

    def token_id(self, token: str) -> int | None:
        """The number of a token, by its text."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    @cached_property
    def before(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text: a BOS token, or nothing."""
        plain, whole = self.encode("a", special=False), self.encode("a", special=True)
        places = range(len(whole) - len(plain) + 1)
        return next((tuple(whole[:i]) for i in places if whole[i : i + len(plain)] == plain), ())

    @cached_property
    def special(self) -> Mapping[str, int]:
        """The numbers of the tokens that :meth:`decode` leaves out, by their texts."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def stops(self, stops: Sequence[str]) -> tuple[tuple[str, ...], frozenset[int]]:
        """Stop strings, and the tokens that stop: a special token is no text, so as a stop string it never came.

        Raises:
            InputError: A stop string holds a special token among other text.
        """
        texts = []
        tokens = set()
        for stop in stops:
            number = self.special.get(stop)
            if number is not None:
                tokens.add(number)
                continue
            inside = next((token for token in self.special if token in stop), None)
            if inside is not None:
                raise InputError(
                    f"the stop string {stop!r} holds the special token {inside!r} among other text, and special tokens are no "
                    f"part of the text that is searched; give {inside!r} and the rest as stop strings of their own"
                )
            texts.append(stop)
        return tuple(texts), frozenset(tokens)

    def numbers(self, tokens: int | str | Sequence[int | str] | None) -> frozenset[int]:
        """The numbers of tokens that are given by text or number; :class:`InputError` for one that there is not."""
        given = [] if tokens is None else [tokens] if isinstance(tokens, (int, str)) else list(tokens)
        found = set()
        for token in given:
            number = self.token_id(token) if isinstance(token, str) else token
            if type(number) is not int or not 0 <= number < LIMIT:
                raise InputError(
                    f"eos: {token!r:.80} is no token of this tokenizer; name one as its vocabulary has it (</s>, <|im_end|>), or "
                    "its number"
                )
            found.add(number)
        return frozenset(found)


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
