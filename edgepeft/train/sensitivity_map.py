"""The sensitivity map: what each layer is worth for what its ranks cost, and the ranks that it gets, as text and for the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .allocation import SiteCost
from .sensitivity import MEASURES, Measure, SiteScore


def drawn_map(
    sites: Sequence[SiteScore], ranks: Mapping[str, int], costs: Mapping[str, SiteCost], measure: Measure = "gradient"
) -> tuple[tuple[str, ...], ...]:
    """The map as rows of cells: a kind of layer, then for each layer a shade for its worth for its cost, and its rank.

    The first row is the header.
    """
    layers = sorted({site.place[1] for site in sites})
    kinds = list(dict.fromkeys(site.place[0] for site in sites))
    worth = {site.place: site.worth(measure) / costs[site.name].rank for site in sites}
    top = max(worth.values()) or 1.0
    rank_at = {site.place: ranks.get(site.name, 0) for site in sites}
    shades = " ░▒▓█"

    def cell(place: tuple[str, int]) -> str:
        if place not in worth:
            return ""
        shade = shades[min(4, round(4 * (worth[place] / top) ** 0.5))]
        return f"{shade} {rank_at[place] or '·'}"

    header = ("layer", *("-" if layer < 0 else str(layer) for layer in layers))
    return (header, *((kind, *(cell((kind, layer)) for layer in layers)) for kind in kinds))


def map_record(
    sites: Sequence[SiteScore],
    ranks: Mapping[str, int],
    costs: Mapping[str, SiteCost],
    measure: Measure,
    **told: str | float | None,
) -> dict[str, Any]:
    """The map as a record keeps it, for ``edgepeft report`` to draw.

    Args:
        sites: The layers.
        ranks: Those that they get, by name.
        costs: What ranks cost, by name.
        measure: How their worth was told.
        told: Stands beside the layers: the budget and its unit, which ranks were kept.
    """
    return {
        "measure": measure,
        **told,
        "sites": [
            {
                "name": site.name,
                "kind": site.place[0],
                "layer": site.place[1],
                "worth": site.worth(measure) / costs[site.name].rank,
                "rank_cost": costs[site.name].rank,
                "opening_cost": costs[site.name].opening,
                "rank_bytes": site.rank_bytes,
                "rank": ranks.get(site.name, 0),
                **{name: float(getattr(site, name)) for name in MEASURES},
            }
            for site in sites
        ],
    }
