"""What the settings of a search would add to a run on a target, and the cheapest of those that are alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .allocation import SiteCost
from .rank_cost import measure_rank_costs
from .tune_search import Search

if TYPE_CHECKING:
    from ..targets import Target
    from .trials import Candidate
    from .workbench import Workbench


class TargetCosts:
    """The milliseconds that adapters add to one run of a target's smallest shape, as :func:`.measure_rank_costs` measures them.

    Args:
        bench: The base.
        target: The target, of this kind of machine.
        seed: Of networks that are made to see which layers a setting trains.
    """

    def __init__(self, bench: Workbench, target: Target, seed: int) -> None:
        self._bench, self.target, self._seed = bench, target, seed
        self._costs: dict[tuple[bool, tuple[int, int]], SiteCost] = {}
        self._known: dict[Any, float] = {}

    def of(self, candidate: Candidate) -> float:
        """What ``candidate`` adds: its slots with their ranks and gains. Norms, biases and heads take the place of the base's."""
        if candidate.kind == "features" and candidate.even is None:
            return 0.0
        key = candidate.settings
        if key not in self._known:
            layers = _layers(self._bench.fresh(key, self._seed))
            for gain in {gain for _, _, gain in layers}:
                wanted = {widths for widths, _, its in layers if its == gain} - {w for g, w in self._costs if g == gain}
                measured = measure_rank_costs(sorted(wanted), self.target, gain=gain)
                self._costs |= {(gain, widths): cost for widths, cost in measured.items()}
            self._known[key] = sum(self._costs[gain, widths].of(rank) for widths, rank, gain in layers)
        return self._known[key]


def _layers(model: Any) -> list[tuple[tuple[int, int], int, bool]]:
    """Widths, rank and whether there is a gain, of each layer that PEFT adapted in ``model``."""
    from peft.tuners.lora import LoraLayer

    return [
        ((int(module.in_features), int(module.out_features)), int(rank), bool(module.use_dora.get(name)))
        for module in model.modules()
        if isinstance(module, LoraLayer)
        for name, rank in module.r.items()
    ]


def prefer_cheaper(search: Search, costs: TargetCosts) -> str | None:
    """Let the cheapest setting win among those that the best is not shown, nor expected, to be better than; what to say of it.

    Equal costs leave the more accurate one.
    """
    best = search.best
    if best is None:
        return None
    alike = [trial for trial in search.trials if search.alike(trial)]
    search.best = min(alike, key=lambda trial: (costs.of(trial.candidate), -trial.accuracy, -trial.key[1]))
    mine, theirs = costs.of(search.best.candidate), costs.of(best.candidate)
    name = costs.target.name
    if search.best is best:
        return f"it adds {mine:.3f} ms to a run on {name}, the least of {len(alike)} settings that are alike"
    return (
        f"it adds {mine:.3f} ms to a run on {name}, the least of {len(alike)} settings that are alike; "
        f"{best.candidate.describe()}, accuracy {best.accuracy:.3f}, adds {theirs:.3f} ms"
    )
