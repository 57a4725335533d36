"""What a variant of a language model writes, against the fp32 one: perplexity, divergence, and the token it would choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import runtime as runtimes
from ..runtime.views import View
from ._calibration_runs import feeds_of


@dataclass(frozen=True)
class Quality:
    """How far a variant is from fp32 on texts that it was not fitted to, for the base or an adapter.

    ``divergence`` is the mean Kullback-Leibler divergence of the variant's next-token distribution from fp32's, in nats, and
    ``divergence_error`` its standard error over windows (``None`` for a single one). ``same_top`` is the share of places at
    which both would choose the same token.
    """

    adapter: str | None
    tokens: int
    perplexity_before: float
    perplexity_after: float
    divergence: float
    divergence_error: float | None
    same_top: float


def measure_quality(
    bundle: Path, variant: str, windows: Mapping[str | None, Sequence[Sequence[int]]]
) -> tuple[Quality, ...]:
    """Compare a variant with fp32, token by token.

    Args:
        bundle: The bundle's folder.
        variant: The variant to judge.
        windows: Runs of at least two tokens by adapter (``None``: the base).

    Returns:
        One row for each adapter, in the order of ``windows``; adapters that put states before the text are left out.
    """
    with runtimes.open(bundle, variant="fp32") as whole, runtimes.open(bundle, variant=variant) as rounded:
        found = []
        for name, each in windows.items():
            views = [model.base if name is None else model.adapter(name) for model in (whole, rounded)]
            if not views[0].active.prefix:  # states before the text are not run here
                found.append(_compare(name, views[0], views[1], each))
        return tuple(found)


def _compare(name: str | None, whole: View, rounded: View, windows: Sequence[Sequence[int]]) -> Quality:
    sums = np.array([_window(whole, rounded, window) for window in windows])
    tokens, before, after, divergence, same = sums.sum(0)
    error = None
    if len(sums) > 1:
        residuals = sums[:, 3] - divergence / tokens * sums[:, 0]
        error = float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(residuals).sum()) / tokens)
    return Quality(
        adapter=name,
        tokens=int(tokens),
        perplexity_before=float(np.exp(before / tokens)),
        perplexity_after=float(np.exp(after / tokens)),
        divergence=float(divergence / tokens),
        divergence_error=error,
        same_top=float(same / tokens),
    )


def _window(whole: View, rounded: View, window: Sequence[int]) -> tuple[float, float, float, float, float]:
    """Tokens, both negative log-likelihoods, divergence and equal choices, summed over a window."""
    one, two = (_log_probabilities(view, window) for view in (whole, rounded))
    places, targets = np.arange(len(window) - 1), np.array(window[1:])
    return (
        float(len(targets)),
        -float(one[places, targets].sum()),
        -float(two[places, targets].sum()),
        float((np.exp(one) * (one - two)).sum()),
        float((one.argmax(1) == two.argmax(1)).sum()),
    )


def _log_probabilities(view: View, window: Sequence[int]) -> np.ndarray:
    """Of each next token, float64 ``[tokens - 1, vocabulary]``."""
    logits = view.forward(feeds_of(view.bundle, window))["logits"][0, :-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    found: np.ndarray = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return found
