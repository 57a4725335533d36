"""Which token pads texts for a classifier over a decoder: it reads its answer from the last token that is not padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..adapters.folder_text import FolderText
from ..errors import InputError

#: A model's folder, an adapter's name, or ``--pad-token``: who says it, for the message.
Texts = Mapping[str, FolderText]


def needs_pad_token(config: Any, task: str) -> bool:
    """Whether a model of ``task`` has no padding token where it may need one."""
    return task == "text-classification" and getattr(config.get_text_config(), "pad_token_id", None) is None


def settle_pad_token(
    config: Any,
    source: str,
    texts: Texts,
    wanted: str | int | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> None:
    """Set the padding token in a model's configuration, which names none.

    Args:
        config: The configuration; it is changed.
        source: The base, for messages.
        texts: What the base's folder and those of its adapters say about text, by who says it; the first that names a
            token counts.
        wanted: A token of the base's tokenizer by text or number, in place of what they say.
        announce: Is told which token was taken, and whose it is.

    Raises:
        InputError: Nobody names a token, or the one that was named is not in the tokenizer.
    """
    found: tuple[int, str] | None = None
    for who, text in texts.items():
        token = text.special("pad_token")
        number = None if token is None else _number(text, token)
        if number is None and token is not None:  # an adapter may name a token of the base's tokenizer
            number = _any_number(texts, token)
        if number is not None:
            found = number, f"{token} of {who}"
            break
    if wanted is not None:
        number = wanted if isinstance(wanted, int) else _any_number(texts, wanted)
        if number is None or not 0 <= number < int(config.get_text_config().vocab_size):
            raise InputError(f"--pad-token {wanted!r} is no token of {source}'s tokenizer")
        found = number, f"{wanted} as asked"
    if found is None:
        raise InputError(
            f"{source} is a decoder without a padding token, and as a classifier it answers at the last token that is none; "
            "neither its tokenizer nor an adapter's names one. Give the token that the adapter was trained with: --pad-token TOKEN"
        )
    number, said = found
    for each in {id(c): c for c in (config, config.get_text_config())}.values():
        each.pad_token_id = number
    announce(f"padding token: {said} ({number})")


def _any_number(texts: Texts, token: str) -> int | None:
    return next((number for text in texts.values() if (number := _number(text, token)) is not None), None)


def _number(text: FolderText, token: str) -> int | None:
    """A token's number by a folder's own tokenizer."""
    if text.tokenizer is None:
        return None
    from tokenizers import Tokenizer

    try:
        number: int | None = Tokenizer.from_str(text.tokenizer).token_to_id(token)
    except Exception as error:  # the library raises no other type
        raise InputError(f"a tokenizer.json is not a tokenizer: {str(error)[:200]}") from error
    return number
