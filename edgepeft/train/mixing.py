"""Rows of several sources of unequal size: how often each source is drawn from, which a temperature sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError


def check_temperature(temperature: float, sources: int) -> None:
    """Refuse a temperature that is none, or that has nothing to mix.

    Args:
        temperature: Of :class:`Mixture`.
        sources: How many sources there are.

    Raises:
        InputError: It is no finite number above 0, or is not 1 and there is one source only.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(
            f"--mix-temperature must be a finite number above 0, found {temperature:g}; 1 draws by size, 100 is nearly uniform"
        )
    if temperature != 1 and sources < 2:
        raise InputError("--mix-temperature says how several sources are mixed, and there is one; repeat --data")


class Mixture:
    """Which rows an epoch has, of sources that are drawn from in shares of their own.

    A source of ``n`` rows has a share of the draws in proportion to ``n ** (1 / temperature)``: 1 is by size, a large temperature
    uniform (temperature-scaled mixing: Raffel et al. 2020, section 3.5.2; the exponent of multilingual BERT and XLM-R is
    ``1 / temperature``). An epoch is as long as all rows together. Each source's rows come one after another, in an order drawn
    anew for each pass, and an epoch goes on where the one before it ended: a small source is seen several times an epoch, a large
    one in part, and no row is left out for good. All of it follows from the seed and the number of the epoch, so a training that
    goes on and the processes of one training need to tell each other nothing.

    Args:
        sources: The source of each row, from 0.
        temperature: Above 0.
        seed: Of the orders.

    Example:
        >>> mixture = Mixture([0] * 90 + [1] * 10, temperature=2.0, seed=0)
        >>> mixture.shares.round(2).tolist(), len(mixture.epoch(0))
        ([0.75, 0.25], 100)
    """

    def __init__(self, sources: Sequence[int], temperature: float, seed: int) -> None:
        of_row = np.asarray(sources)
        self._places = [np.flatnonzero(of_row == source) for source in np.unique(of_row)]
        self._seed, self._rows = seed, len(of_row)
        sizes = np.array([len(places) for places in self._places], dtype=np.float64)
        scaled = (sizes / sizes.max()) ** (1 / temperature)
        #: Of each source that has rows, in their order: its share of the draws.
        self.shares: npt.NDArray[np.float64] = scaled / scaled.sum()
        self._counts = _whole(self.shares * self._rows, self._rows)

    def __len__(self) -> int:
        return self._rows

    def epoch(self, number: int) -> list[int]:
        """The places of the rows of an epoch, counted from 0; one source after the other, so still to be shuffled."""
        found: list[int] = []
        for source, (places, count) in enumerate(zip(self._places, self._counts, strict=True)):
            at, end = number * count, (number + 1) * count
            while at < end:
                turn, within = divmod(at, len(places))
                order = np.random.default_rng([self._seed, source, turn]).permutation(places)
                taken = order[within : within + end - at]
                found += taken.tolist()
                at += len(taken)
        return found

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """How often each row ``[rows]`` is drawn in an epoch, in the mean."""
        found = np.zeros(self._rows)
        for places, share in zip(self._places, self.shares, strict=True):
            found[places] = share * self._rows / len(places)
        return found


def mixture_of(sources: Sequence[int], temperature: float, seed: int) -> Mixture | None:
    """The mixture of rows; ``None`` where each row is drawn once an epoch anyway: one source, or by size."""
    return None if temperature == 1 or len(set(sources)) < 2 else Mixture(sources, temperature, seed)


def _whole(exact: npt.NDArray[np.float64], total: int) -> list[int]:
    """Whole numbers that add up to ``total``, each within 1 of ``exact``: by largest remainder."""
    counts = np.floor(exact).astype(np.int64)
    for place in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[place] += 1
    return [int(count) for count in counts]
