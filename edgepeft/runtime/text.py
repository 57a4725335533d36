"""From text to model inputs and from outputs to predictions, by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bundle import NO_TEXT, Bundle, OwnText
from ..errors import InputError
from .files import read_object, read_tokenizer, tokenizing

#: Texts, or pairs of texts.
Texts = Sequence[str] | Sequence[tuple[str, str]]


class TextEncoder:
    """A bundle's tokenizer, or an adapter's own, with padding and truncation set for the base.

    Args:
        bundle: The bundle.
        own: The adapter's text files (``bundle.text_of(name)``); none for the base's.
        limit: Longest text in tokens, where that is not the base's longest input.
    """

    def __init__(self, bundle: Bundle, own: OwnText = NO_TEXT, limit: int | None = None) -> None:
        # Its padding and truncation are set here, once: threads share it.
        self._tokenizer = read_tokenizer(bundle, "so it runs on arrays only: pass a mapping of input_ids, …", own)
        self._where = bundle.file(own.path("tokenizer.json"))
        self._inputs = {value.name for value in bundle.manifest.inputs}
        pad_token, pad_id = self._padding(bundle, own)
        self.pad_id = pad_id
        self._tokenizer.enable_padding(pad_id=pad_id, pad_token=pad_token)
        limit = limit or bundle.manifest.max_length
        if limit:
            # It refuses where the special tokens alone are longer.
            with tokenizing(self._where, "cannot cut texts"):
                self._tokenizer.enable_truncation(limit)

    def _padding(self, bundle: Bundle, own: OwnText) -> tuple[str, int]:
        """The pad token the model was trained with; without one, token 0 (the mask hides it).

        The configuration's comes first: a classifier over a decoder finds the end of a text by it.
        """
        named = read_object(bundle, "tokenizer_config.json", own).get("pad_token")
        number = read_object(bundle, "config.json").get("pad_token_id")
        if type(number) is int and (token := self._tokenizer.id_to_token(number) if number >= 0 else None) is not None:
            return token, number
        token = named.get("content") if isinstance(named, dict) else named
        if isinstance(token, str):
            number = self._tokenizer.token_to_id(token)
            if number is not None:
                return token, number
        for token in ("[PAD]", "<pad>"):
            number = self._tokenizer.token_to_id(token)
            if number is not None:
                return token, number
        return self._tokenizer.id_to_token(0) or "[PAD]", 0

    def encode(self, texts: Texts) -> dict[str, np.ndarray]:
        """Padded int64 arrays ``[batch, sequence]`` for every input the base takes."""
        encodings = self._encodings(texts)
        arrays = {
            "input_ids": np.array([e.ids for e in encodings], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
            "token_type_ids": np.array([e.type_ids for e in encodings], np.int64),
        }
        return {name: array for name, array in arrays.items() if name in self._inputs}

    def truncated(self, texts: Texts) -> list[int]:
        """Positions of the texts that are cut to the longest input."""
        return [row for row, encoding in enumerate(self._encodings(texts)) if encoding.overflowing]

    def _encodings(self, texts: Texts) -> list[Any]:
        for text in texts:
            if not is_text(text):
                raise InputError(f"{text!r:.200} is not a text (valid Unicode), nor a pair of two texts")
        with tokenizing(self._where, "cannot encode a text"):
            encodings: list[Any] = self._tokenizer.encode_batch(list(texts))
        return encodings

    def encoding(self, text: str | tuple[str, str]) -> Any:
        """One text as the tokenizer encodes it, cut and unpadded: tokens with their offsets, words and text of a pair."""
        inputs = (text,) if isinstance(text, str) else text
        with tokenizing(self._where, "cannot encode a text"):
            return self._tokenizer.encode(*inputs)

    def tokens(self, text: str | tuple[str, str]) -> list[str]:
        """The tokens of one text, special ones included."""
        inputs = (text,) if isinstance(text, str) else text
        with tokenizing(self._where, "cannot encode a text"):
            tokens: list[str] = self._tokenizer.encode(*inputs).tokens
        return tokens

    def prompt_length(self, prompt: str) -> int:
        """How many tokens a prompt takes at the begin of a text, those before it included, as sentence-transformers counts."""
        if not prompt:
            return 0
        ids = self._encodings([prompt])[0].ids
        known = self._tokenizer.get_added_tokens_decoder()
        # A token that ends every text (SEP, EOS) stands behind the text that follows.
        ends = bool(ids) and ids[-1] in known and known[ids[-1]].special
        return len(ids) - int(ends)

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of some tokens, special ones left out."""
        with tokenizing(self._where, "cannot decode tokens"):
            return str(self._tokenizer.decode(list(numbers)))

    def token(self, number: int) -> str:
        """The token with an id."""
        return str(self._tokenizer.id_to_token(number))

    def token_id(self, token: str) -> int | None:
        """The id of a token."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number


def encode_rows(encoders: Sequence[TextEncoder], texts: Texts) -> dict[str, np.ndarray]:
    """Padded int64 arrays ``[batch, sequence]`` for texts, each cut by the encoder of its row.

    Rows are padded on the right with their own encoder's pad token; the mask hides it.
    """
    first = encoders[0] if encoders else None
    if first is None or all(encoder is first for encoder in encoders):
        return {} if first is None else first.encode(texts)
    alone: list[Any] = [[text] for text in texts]
    rows = [encoder.encode(text) for encoder, text in zip(encoders, alone, strict=True)]
    width = max(row["input_ids"].shape[1] for row in rows)
    padded: dict[str, np.ndarray] = {}
    for name in rows[0]:
        whole = np.zeros((len(rows), width), np.int64)
        for place, row in enumerate(rows):
            if name == "input_ids":
                whole[place] = encoders[place].pad_id
            whole[place, : row[name].shape[1]] = row[name][0]
        padded[name] = whole
    return padded


def is_text(value: object) -> bool:
    """Whether ``value`` is a text that a tokenizer takes (no half of a surrogate pair), or a pair of two."""
    if isinstance(value, tuple):
        return len(value) == 2 and all(isinstance(part, str) and is_text(part) for part in value)
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
