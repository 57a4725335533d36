"""The sequences that a language model learns and is measured on, from a corpus: how rows become text, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from .corpus import Corpus
from .encode import Tokens
from .tokenizer import HubTokenizer

Layout = Literal["chat", "plain", "text"]


@dataclass(frozen=True)
class Sequences:
    """Encoded sequences: those to learn, those that are held out, and how many rows were cut or left out on the way."""

    layout: Layout
    train: list[Tokens]
    held: list[Tokens]
    cut: int
    skipped: int


def sequences_of(
    corpus: Corpus,
    held: Corpus | None,
    tokenizer: HubTokenizer,
    *,
    source: str,
    length: int,
    chat: bool | None,
    fraction: float,
    max_validation_tokens: int,
    seed: int,
) -> Sequences:
    """Encode ``corpus``, and ``held`` or what is split off.

    Args:
        corpus: What is learnt.
        held: What is measured on, of the same kind; ``None`` for a share of ``corpus``.
        tokenizer: The base's.
        source: The base's name, for messages.
        length: The most tokens of a sequence.
        chat: Whether rows go through the chat template; ``None`` where there is one.
        fraction: The share of distinct prompts or texts that is split off.
        max_validation_tokens: The most learnt tokens that are measured.
        seed: Of what is split off.

    Raises:
        InputError: There is no layout for the rows.
    """
    from .encode import encode, limit, split

    layout = _layout(corpus, tokenizer, chat, source)
    encoded = encode(corpus, tokenizer, max_length=length, chat=layout == "chat")
    if held is None:
        train, apart = split(
            encoded.sequences, fraction=fraction, max_tokens=max_validation_tokens, seed=seed, source=corpus.source
        )
        return Sequences(layout, list(train), list(apart), encoded.cut, encoded.skipped)
    also = encode(held, tokenizer, max_length=length, chat=layout == "chat")
    return Sequences(
        layout,
        list(encoded.sequences),
        list(limit(also.sequences, max_validation_tokens, seed)),
        encoded.cut + also.cut,
        encoded.skipped + also.skipped,
    )


def general_sequences(
    corpus: Corpus | None,
    tokenizer: HubTokenizer,
    *,
    source: str,
    length: int,
    chat: bool | None,
    max_validation_tokens: int,
    seed: int,
) -> list[Tokens]:
    """Sequences of rows of other domains, which may be of another kind than those that are learnt; none where there are none.

    Arguments and errors are those of :func:`sequences_of`.
    """
    from .encode import encode, limit

    if corpus is None:
        return []
    layout = _layout(corpus, tokenizer, chat, source)
    encoded = encode(corpus, tokenizer, max_length=length, chat=layout == "chat")
    return limit(encoded.sequences, max_validation_tokens, seed)


def _layout(corpus: Corpus, tokenizer: HubTokenizer, chat: bool | None, source: str) -> Layout:
    """How rows become text; :class:`InputError` where that needs a chat template or an end token that is not there."""
    if corpus.kind == "text":
        return "text"
    has = isinstance(tokenizer.chat_template, str)
    if corpus.kind == "messages" or (has if chat is None else chat):
        if not has:
            raise InputError(
                f"{source}: the tokenizer has no chat template, so conversations have no layout. Give one as a Jinja file "
                "(--chat-template FILE; the template of the instruct model of the same family is a good one), or rows "
                "with prompt and completion"
            )
        return "chat"
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{source}: the tokenizer has no end-of-sequence token, so a completion could never end. Set one and save the "
            "tokenizer beside the model (tokenizer.eos_token = …)"
        )
    return "plain"


def pad_id_of(tokenizer: HubTokenizer) -> int:
    """A token to fill rows with; it is masked, so any will do."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
