"""Perplexity on held-out sequences, with the error it has as a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.intervals import ratio_of_sums
from .device import as_doubles
from .encode import Tokens, collate
from .processes import group

if TYPE_CHECKING:
    from peft import PeftModel

#: Logits of one batch: larger ones are split. 64 Mi float32 values are 256 MB.
_MAX_LOGITS = 1 << 26


@dataclass(frozen=True)
class Perplexity:
    """What a language model makes of held-out text.

    ``nll`` is the mean negative log-likelihood in nats a token, over all ``tokens`` alike, and ``perplexity`` its
    exponential. The standard errors take the ``groups`` (texts, conversations) as the draws, since tokens of one text
    are not independent; they are ``None`` for a single group. ``standard_error`` is the perplexity's (delta method).
    """

    perplexity: float
    standard_error: float | None
    nll: float
    nll_standard_error: float | None
    tokens: int
    groups: int


@dataclass(frozen=True)
class Change:
    """Mean difference in nats a token, after minus before, on the same tokens, and its paired standard error."""

    nll: float
    standard_error: float | None


#: Summed negative log-likelihood in nats and number of tokens, by group.
Losses = Mapping[str, tuple[float, int]]


def measure(model: PeftModel, sequences: Sequence[Tokens], *, pad_id: int) -> Losses:
    """The losses of ``model`` on ``sequences``, summed by group; the model's mode is restored afterwards.

    Several processes share the batches, and all get the sums.
    """
    import torch

    vocabulary = int(model.get_input_embeddings().num_embeddings)
    together = group()
    mine: list[tuple[int, list[tuple[str, float, int]]]] = []  # a batch's number, and its sequences' losses
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for number, batch in together.share(list(enumerate(_batches(sequences, vocabulary)))):
                tensors = {
                    name: value.to(model.device) for name, value in collate([[s] for s in batch], pad_id).items()
                }
                labels = tensors.pop("labels")[:, 1:]
                # Virtual tokens of a prompt method stand before the text's own.
                logits = model(**tensors).logits[:, -labels.shape[1] - 1 : -1]
                learnt = labels >= 0  # [batch, length - 1]
                losses = torch.zeros(labels.shape, device=labels.device)
                losses[learnt] = torch.nn.functional.cross_entropy(
                    logits[learnt].float(), labels[learnt], reduction="none"
                )
                totals = as_doubles(losses).sum(dim=1).tolist()
                mine.append((number, [(s.group, total, s.targets) for s, total in zip(batch, totals, strict=True)]))
    finally:
        model.train(training)
    sums: dict[str, tuple[float, int]] = {}
    for _, told in sorted(chain(*together.gathered(mine)), key=itemgetter(0)):
        for name, total, targets in told:
            loss, tokens = sums.get(name, (0.0, 0))
            sums[name] = (loss + total, tokens + targets)
    return sums


def _batches(sequences: Sequence[Tokens], vocabulary: int) -> list[list[Tokens]]:
    """Sequences of similar length together, at most ``_MAX_LOGITS`` logits a batch (but at least one sequence)."""
    batches: list[list[Tokens]] = []
    for sequence in sorted(sequences, key=lambda s: -len(s.ids)):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].ids) * vocabulary <= _MAX_LOGITS:
            batches[-1].append(sequence)
        else:
            batches.append([sequence])
    return batches


def summarize(losses: Losses) -> Perplexity:
    """Perplexity and standard errors of :func:`measure`'s losses."""
    nll, error = ratio_of_sums(np.array([value for value, _ in losses.values()]), _counts(losses))
    perplexity = math.exp(min(nll, 700.0))
    return Perplexity(
        perplexity=perplexity,
        standard_error=None if error is None else perplexity * error,
        nll=nll,
        nll_standard_error=error,
        tokens=int(_counts(losses).sum()),
        groups=len(losses),
    )


def change(before: Losses, after: Losses) -> Change:
    """How ``after`` differs from ``before``; both hold the same groups."""
    differences = np.array([after[group][0] - before[group][0] for group in before])
    return Change(*ratio_of_sums(differences, _counts(before)))


def _counts(losses: Losses) -> np.ndarray:
    return np.array([tokens for _, tokens in losses.values()], dtype=float)
