"""Ranks within a budget, of bytes or of milliseconds: one after another where the next is worth most for what it costs."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .sensitivity import Measure, SiteScore

#: Ranks of one layer, at most.
_MOST = 64


@dataclass(frozen=True)
class SiteCost:
    """What ranks cost at one layer, in bytes or milliseconds: ``opening`` for having any there, ``rank`` for each."""

    rank: float
    opening: float = 0.0

    def of(self, rank: int) -> float:
        """What ``rank`` ranks cost; none cost nothing."""
        return self.opening + rank * self.rank if rank else 0.0


def byte_costs(sites: Sequence[SiteScore]) -> dict[str, SiteCost]:
    """What a rank takes on disk, by layer."""
    return {site.name: SiteCost(site.rank_bytes) for site in sites}


def allocate(
    sites: Sequence[SiteScore],
    budget: float,
    costs: Mapping[str, SiteCost],
    *,
    measure: Measure = "gradient",
    most: int = _MOST,
    unit: str = "bytes",
) -> dict[str, int]:
    """Ranks by layer that fit into ``budget``: rank by rank where the next one is worth most for what it costs.

    Within a layer each rank is worth less than the one before, so where opening a layer costs nothing this greedy order is the best
    for the budget, up to the last rank. Where it costs something a layer is opened with as many ranks as make the best of it.

    Args:
        sites: The layers.
        budget: Of all ranks, in the unit of ``costs``.
        costs: What ranks cost, by the layer's name.
        measure: How a layer's worth is told.
        most: Ranks of one layer, at most.
        unit: The name of the unit, for messages.

    Raises:
        InputError: The budget is below one rank of the cheapest layer.
    """
    cheapest = min(costs[site.name].of(1) for site in sites)
    if budget < cheapest:
        raise InputError(
            f"a rank budget of {budget:.4g} {unit} is below one rank of the cheapest layer ({cheapest:.4g} {unit})"
        )
    gains = {site.name: site.gains(measure, most) for site in sites}
    ranks: dict[str, int] = {}
    left = budget
    queue = [_opening(gains[site.name], costs[site.name], place, most) for place, site in enumerate(sites)]
    heapq.heapify(queue)
    while queue:
        _, place, count = heapq.heappop(queue)
        name = sites[place].name
        cost, have = costs[name], ranks.get(name, 0)
        price = cost.of(have + count) - cost.of(have)
        if price > left:
            fitting = int((left - cost.opening) // cost.rank) if count > 1 else 0
            if fitting >= 1:
                heapq.heappush(queue, _opening(gains[name], cost, place, fitting))
            continue  # a cheaper layer may still fit
        ranks[name] = have = have + count
        left -= price
        if have < len(gains[name]) and gains[name][have] > 0:
            heapq.heappush(queue, (-gains[name][have] / cost.rank, place, 1))
    return {site.name: ranks[site.name] for site in sites if site.name in ranks}


def _opening(gains: npt.NDArray[np.float64], cost: SiteCost, place: int, most: int) -> tuple[float, int, int]:
    """The entry of a layer that has no rank yet: with how many ranks, up to ``most``, it is worth most for its cost."""
    counts = np.arange(1, min(most, len(gains)) + 1)
    ratios = np.cumsum(gains[: len(counts)]) / (cost.opening + counts * cost.rank)
    best = int(np.argmax(ratios))
    return -float(ratios[best]), place, best + 1


def uniform_cost(sites: Sequence[SiteScore], targets: Sequence[str], rank: int, costs: Mapping[str, SiteCost]) -> float:
    """What ``rank`` at every layer of ``targets`` (names or their last parts) costs."""
    return sum(costs[site.name].of(rank) for site in sites if is_target(site.name, targets))


def uniform_rank(
    sites: Sequence[SiteScore], targets: Sequence[str], budget: float, costs: Mapping[str, SiteCost]
) -> int:
    """The highest rank at every layer of ``targets`` that ``budget`` pays; 0 where it pays none."""
    opening = uniform_cost(sites, targets, 1, costs)
    each = uniform_cost(sites, targets, 2, costs) - opening
    return 0 if budget < opening else 1 + int((budget - opening) // each)


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether PEFT takes the module ``name`` for one of ``targets``."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
