"""What a variant of a language model writes, against fp32 or another: perplexity, divergence, and the token it would choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import runtime as runtimes
from ..metrics.intervals import ratio_of_sums
from ..quantize.recipes import WHOLE
from ..runtime.views import View
from ..validate.likelihood import logarithms


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
    bundle: Path, variant: str, windows: Mapping[str | None, Sequence[Sequence[int]]], whole: str = WHOLE
) -> tuple[Quality, ...]:
    """Compare a variant with fp32, token by token.

    Args:
        bundle: The bundle's folder.
        variant: The variant to judge.
        windows: Runs of at least two tokens by adapter (``None``: the base).
        whole: The variant that it is compared with.

    Returns:
        One row for each adapter, in the order of ``windows``; adapters that put states before the text are left out.
    """
    with runtimes.open(bundle, variant=whole) as before, runtimes.open(bundle, variant=variant) as rounded:
        found = []
        for name, each in windows.items():
            if name is not None and before.bundle.manifest.adapters[name].prefix_length:
                continue  # states before the text are not run here
            one, other = (model.base if name is None else model.adapter(name) for model in (before, rounded))
            found.append(_compare(name, one, other, each))
        return tuple(found)


def _compare(name: str | None, whole: View, rounded: View, windows: Sequence[Sequence[int]]) -> Quality:
    return quality_from(name, np.array([compare_window(whole, rounded, window) for window in windows]))


def quality_from(name: str | None, sums: np.ndarray) -> Quality:
    """A row out of sums over windows, ``[windows, 5]``: tokens, both negative log-likelihoods, divergence, equal choices."""
    tokens, before, after, divergence, same = sums.sum(0)
    _, error = ratio_of_sums(sums[:, 3], sums[:, 0])
    return Quality(
        adapter=name,
        tokens=int(tokens),
        perplexity_before=float(np.exp(before / tokens)),
        perplexity_after=float(np.exp(after / tokens)),
        divergence=float(divergence / tokens),
        divergence_error=error,
        same_top=float(same / tokens),
    )


def compare_window(whole: View, rounded: View, window: Sequence[int], first: int = 0) -> np.ndarray:
    """Tokens, both negative log-likelihoods, divergence and equal choices, summed over a window: float64 ``[5]``.

    The token behind the place ``first`` is the first that counts.
    """
    sums = np.zeros(5)
    for (place, one), (_, two) in zip(
        logarithms(whole, window, first), logarithms(rounded, window, first), strict=True
    ):
        places, targets = np.arange(len(one)), np.array(window[place + 1 : place + 1 + len(one)])
        sums += (
            len(one),
            -one[places, targets].sum(),
            -two[places, targets].sum(),
            (np.exp(one) * (one - two)).sum(),
            (one.argmax(1) == two.argmax(1)).sum(),
        )
    return sums
