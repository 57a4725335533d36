"""From rows to token ids, with a mark on each token that is to be learnt; packing and padding."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, InputError
from .corpus import Corpus, Row
from .tokenizer import HubTokenizer

_IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Tokens:
    """One sequence: ``ids`` ``[length]``, and ``learnt`` ``[length]``, true where the token is a target of the loss.

    The first token is never one: nothing predicts it. ``group`` is the row's key; equal groups stay on one side of a
    split, and count as one draw in a standard error. ``source`` is the number of the source that it is of, where there are several.
    """

    ids: npt.NDArray[np.int32]
    learnt: npt.NDArray[np.bool_]
    group: str
    source: int = 0

    @property
    def targets(self) -> int:
        """How many tokens are learnt."""
        return int(self.learnt.sum())


@dataclass(frozen=True)
class Encoded:
    """All sequences of a corpus; rows that were ``cut`` to the limit, and rows ``skipped`` as their prompt filled it."""

    sequences: tuple[Tokens, ...]
    cut: int
    skipped: int


def encode(corpus: Corpus, tokenizer: HubTokenizer, *, max_length: int, chat: bool) -> Encoded:
    """Token ids of ``corpus``, none longer than ``max_length``.

    Text is cut into pieces that overlap by one token, so that every token but the first of a text is learnt once.
    Prompts are not learnt: of a conversation the assistant's turns are, of a prompt and completion the completion with
    the end-of-sequence token. ``chat`` lays them out with the tokenizer's chat template.

    Raises :class:`DataError` where a template fails on a row or no row has a token to learn.
    """
    if corpus.kind == "text":
        return _pieces(corpus, tokenizer, max_length)
    cut = skipped = 0
    sequences: list[Tokens] = []
    for row in corpus.rows:
        ids, learnt = _chat(row, tokenizer) if chat else _plain(row, tokenizer)
        cut += len(ids) > max_length
        sequence = _tokens(ids[:max_length], learnt[:max_length], row.key)
        if sequence.targets:
            sequences.append(sequence)
        else:
            skipped += 1
    if not sequences:
        raise DataError(
            f"{corpus.source}: in all {len(corpus.rows)} rows the prompt alone fills the limit of {max_length} tokens; "
            "give a higher --max-length, or shorter prompts"
        )
    return Encoded(tuple(sequences), cut - skipped, skipped)


def _tokens(ids: Sequence[int], learnt: Sequence[bool], group: str) -> Tokens:
    mask = np.array(learnt, dtype=bool)
    mask[:1] = False
    return Tokens(np.array(ids, dtype=np.int32), mask, group)


def _pieces(corpus: Corpus, tokenizer: HubTokenizer, max_length: int) -> Encoded:
    """Pieces of each text; a text is a group of its own where there are enough of them to hold some out."""
    whole = len({row.key for row in corpus.rows}) >= 20
    pieces = []
    for number, row in enumerate(corpus.rows):
        ids = _closed(tokenizer(row.turns[0][1], verbose=False)["input_ids"], tokenizer)
        for start in range(0, max(len(ids) - 1, 0), max_length - 1):
            piece = ids[start : start + max_length]
            group = row.key if whole else f"{number}:{start}"
            pieces.append(_tokens(piece, [True] * len(piece), group))
    if not pieces:
        raise DataError(f"{corpus.source}: no text has two tokens, so there is nothing to predict")
    return Encoded(tuple(pieces), 0, 0)


def _closed(ids: list[int], tokenizer: HubTokenizer) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _plain(row: Row, tokenizer: HubTokenizer) -> tuple[list[int], list[bool]]:
    """Prompt and completion as they stand, one after the other."""
    (_, prompt), (_, completion) = row.turns
    encoded = tokenizer(prompt + completion, return_offsets_mapping=True, verbose=False)
    ids = _closed(encoded["input_ids"], tokenizer)
    learnt = [end > max(start, len(prompt)) for start, end in encoded["offset_mapping"]]
    return ids, [*learnt[: len(ids) - 1], True]  # the end of the sequence is learnt, whoever put it there


def _chat(row: Row, tokenizer: HubTokenizer) -> tuple[list[int], list[bool]]:
    """A conversation in the chat template's layout; the assistant's turns are learnt up to their closing token."""
    messages = [{"role": role, "content": content} for role, content in row.turns]
    template = tokenizer.chat_template
    if isinstance(template, str) and "generation %}" in template:  # the template itself marks what the assistant says
        encoded = render(tokenizer, messages, row.where, tokenize=True)
        return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]
    text = render(tokenizer, messages, row.where)
    spans = [
        _span(text, messages, number, tokenizer, row) for number, m in enumerate(messages) if m["role"] == "assistant"
    ]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # A token that spans the border of a turn holds a part of what is to be said, so it is learnt.
    learnt = [
        any(end > max(start, first) and start < last for first, last in spans)
        for start, end in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), learnt


def _span(text: str, messages: list[dict[str, str]], number: int, tokenizer: HubTokenizer, row: Row) -> tuple[int, int]:
    """Where in ``text`` the turn ``number`` is said: after the generation prompt, up to and with its closing token."""
    before = render(tokenizer, messages[:number], row.where, generation=True) if number else ""
    after = render(tokenizer, messages[: number + 1], row.where)
    content = messages[number]["content"].strip()
    start = len(before) if before and text.startswith(before) else text.find(content, len(_common(text, before)))
    if start < 0 or not text.startswith(after) or content not in text[start : len(after)]:
        raise DataError(
            f"{row.where}: the tokenizer's chat template lays out message {number + 1} (assistant) differently when other "
            "messages follow, or changes its text, so its tokens cannot be told apart. Give a template that marks what "
            "the assistant says with {% generation %} … {% endgeneration %}: --chat-template FILE"
        )
    said = text[start : len(after)]
    # The line break after the closing token belongs to the layout: nobody generates it.
    closed = said.rstrip()
    special = tuple(token for token in tokenizer.all_special_tokens if token.strip())
    return start, start + (len(closed) if closed.endswith(special) else len(said))


def _common(first: str, second: str) -> str:
    length = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[:length]


def render(
    tokenizer: HubTokenizer,
    messages: list[dict[str, str]],
    where: str,
    *,
    generation: bool = False,
    tokenize: bool = False,
) -> Any:
    """``messages`` in the chat template's layout, as text or (``tokenize``) as ids with the assistant's marks.

    Raises :class:`DataError` with the template's own message where it fails.
    """
    try:
        if tokenize:
            return tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    except Exception as error:  # a template is a program: it raises what it likes (jinja2, TypeError, ValueError, …)
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{where}: the chat template fails on the roles {roles}: {type(error).__name__}: {error}. Change the row, or "
            "give another template: --chat-template FILE"
        ) from error


def split(
    sequences: Sequence[Tokens], *, fraction: float, max_tokens: int, seed: int, source: str
) -> tuple[list[Tokens], list[Tokens]]:
    """Sequences to train on, and ``fraction`` of the groups held out, but no more than ``max_tokens`` targets of them.

    Equal groups stay on one side. Raises :class:`DataError` where there are fewer than two groups.
    """
    if not 0 < fraction < 1:
        raise InputError(f"validation fraction must lie between 0 and 1, found {fraction}")
    groups: dict[str, list[Tokens]] = defaultdict(list)
    for sequence in sequences:
        groups[sequence.group].append(sequence)
    if len(groups) < 2:
        raise DataError(
            f"{source}: only one distinct prompt or text, so none can be held out; add rows, lower --max-length so that "
            "a text gives several pieces, or give a validation file"
        )
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    wanted = min(max(1, round(len(order) * fraction)), len(order) - 1)
    held: set[str] = set()
    tokens = 0
    for group in order[:wanted]:
        tokens += sum(sequence.targets for sequence in groups[group])
        if held and tokens > max_tokens:
            break
        held.add(group)
    return [s for s in sequences if s.group not in held], [s for s in sequences if s.group in held]


def limit(sequences: Sequence[Tokens], max_tokens: int, seed: int) -> list[Tokens]:
    """At most ``max_tokens`` targets of ``sequences`` (at least one sequence), drawn at random."""
    order = list(range(len(sequences)))
    random.Random(seed).shuffle(order)
    taken: list[int] = []
    tokens = 0
    for index in order:
        tokens += sequences[index].targets
        if taken and tokens > max_tokens:
            break
        taken.append(index)
    return [sequences[index] for index in sorted(taken)]


def pack(sequences: Sequence[Tokens], max_length: int) -> list[list[Tokens]]:
    """Blocks of sequences of at most ``max_length`` tokens together: best fit, the longest first."""
    blocks: list[list[Tokens]] = []
    room: list[tuple[int, int]] = []  # tokens left and number of each open block, ascending
    for sequence in sorted(sequences, key=lambda s: -len(s.ids)):
        place = bisect_left(room, (len(sequence.ids), -1))
        if place == len(room):
            blocks.append([])
            left, number = max_length, len(blocks) - 1
        else:
            left, number = room.pop(place)
        blocks[number].append(sequence)
        insort(room, (left - len(sequence.ids), number))
    return blocks


def collate(blocks: Sequence[Sequence[Tokens]], pad_id: int) -> dict[str, Any]:
    """Tensors ``[batch, length]`` of the longest block: one sequence a row padded on the right, or several packed.

    A packed row carries ``position_ids`` that start again with each sequence and no ``attention_mask``: transformers
    then keeps the sequences apart. Padding there is one more sequence.
    """
    import torch

    length = max(sum(len(s.ids) for s in block) for block in blocks)
    shape = (len(blocks), length)
    ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, _IGNORED, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    for row, block in enumerate(blocks):
        at = 0
        for sequence in block:
            end = at + len(sequence.ids)
            ids[row, at:end] = sequence.ids
            labels[row, at:end] = np.where(sequence.learnt, sequence.ids, _IGNORED)
            mask[row, at:end] = 1
            positions[row, at:end] = np.arange(end - at)
            at = end
        positions[row, at:] = np.arange(length - at)
    arrays: Mapping[str, npt.NDArray[np.int64]] = {"input_ids": ids, "labels": labels}
    packed = any(len(block) > 1 for block in blocks)
    arrays = {**arrays, "position_ids": positions} if packed else {**arrays, "attention_mask": mask}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
