"""Answers to questions: the span of a context that start and end logits point to."""

from __future__ import annotations

from typing import Any

import numpy as np

from .predictions import softmax

#: Most tokens of an answer, as transformers' question-answering pipeline has it.
MAX_ANSWER_TOKENS = 15


def best_span(start: np.ndarray, end: np.ndarray, inside: np.ndarray) -> tuple[int, int, float]:
    """The likeliest span of at most ``MAX_ANSWER_TOKENS`` tokens, with its probability.

    As transformers' pipeline has it: each side's probabilities over the tokens of the context, and the largest product of a start
    and an end that is not before it.

    Args:
        start: Logits ``[tokens]`` of where the answer begins.
        end: Logits ``[tokens]`` of its last token.
        inside: Whether each token is the context's, ``[tokens]``.
    """
    sides = [softmax(np.where(inside, side.astype(np.float64), -np.inf)) for side in (start, end)]
    products = np.triu(np.outer(*sides))
    products = np.tril(products, MAX_ANSWER_TOKENS - 1)
    first, last = np.unravel_index(int(products.argmax()), products.shape)
    return int(first), int(last), float(products[first, last])


def answer(context: str, encoding: Any, start: np.ndarray, end: np.ndarray) -> dict[str, Any]:
    """The answer out of ``context``: whole words, its place in characters, and its probability.

    Args:
        context: The second text of the pair.
        encoding: The pair as the tokenizer encodes it, cut to the base's length.
        start: Logits ``[tokens]``; positions behind the encoding's own are padding.
        end: Logits ``[tokens]``.
    """
    second = np.array([part == 1 for part in encoding.sequence_ids])
    count = len(second)
    first, last, score = best_span(start[:count], end[:count], second)
    offsets, words = encoding.offsets, encoding.word_ids
    same = [
        place
        for place in range(count)
        if second[place] and words[place] is not None and words[place] in {words[first], words[last]}
    ]
    begin = min([offsets[first][0], *(offsets[place][0] for place in same if words[place] == words[first])])
    finish = max([offsets[last][1], *(offsets[place][1] for place in same if words[place] == words[last])])
    return {"answer": context[begin:finish], "score": score, "start": begin, "end": finish}
