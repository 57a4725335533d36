"""The sensitivity map of ``train --modules auto`` as a heat map: layers by kinds of layer, and the ranks that they got."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..report.gate import Table
from . import charts
from .figures import Chart

#: Shades of the map; more cannot be told apart.
_SHADES = 8
#: How opaque the weakest and the strongest shade are. A rank stands in each, so the strongest lets the ink be read.
_WEAKEST, _STRONGEST = 0.06, 0.7
#: With more layers than this they stand below each other.
_MOST_COLUMNS = 16
#: Worth below this part of the largest has the weakest shade.
_LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class MapSite:
    """One linear layer: its kind, its layer of the network (-1: none), its worth for its cost, and its rank (0: left alone)."""

    kind: str
    layer: int
    worth: float
    rank: int


def sensitivity_sites(record: Mapping[str, Any]) -> list[MapSite]:
    """The map in a training's record; empty where it has none or is not in this form."""
    sites = (record.get("sensitivity") or {}).get("sites") if isinstance(record.get("sensitivity"), Mapping) else None
    found = []
    for site in sites if isinstance(sites, Sequence) and not isinstance(sites, str) else ():
        if not isinstance(site, Mapping):
            return []
        kind, layer, worth, rank = site.get("kind"), site.get("layer"), site.get("worth"), site.get("rank")
        if not isinstance(kind, str) or not isinstance(layer, int) or not isinstance(rank, int):
            return []
        if not isinstance(worth, int | float) or not math.isfinite(worth):
            return []
        found.append(MapSite(kind, layer, float(worth), rank))
    return found


def sensitivity_chart(title: str, record: Mapping[str, Any]) -> Chart | None:
    """The heat map: the stronger a layer's colour, the more its ranks are worth for their cost (log scale); its rank in the cell.

    Args:
        title: Of the chart.
        record: Of a training.

    Returns:
        The chart; ``None`` where the record has no map.
    """
    sites = sensitivity_sites(record)
    top = max((site.worth for site in sites), default=0.0)
    if top <= 0:
        return None
    kinds = list(dict.fromkeys(site.kind for site in sites))
    layers = sorted({site.layer for site in sites})
    numbers = ["–" if layer < 0 else str(layer) for layer in layers]
    upright = len(layers) > _MOST_COLUMNS
    rows, columns = (len(layers), len(kinds)) if upright else (len(kinds), len(layers))
    least = max(top * _LEAST_SHARE, min((site.worth for site in sites if site.worth > 0), default=top))
    least = min(least, top / 10)  # a scale of one value has no steps
    with charts.drawing(rows, extra=1.9 if upright else 1.15) as (figure, axes, out):
        _draw_cells(figure, axes, sites, kinds, layers, (least, top), _unit(record), upright=upright)
        names = [charts.short(kind) for kind in kinds]
        across, down = (names, numbers) if upright else (numbers, names)
        axes.set_xticks(range(columns), across, rotation=60 if upright else 0, ha="right" if upright else "center")
        axes.set_yticks(range(rows), down)
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(rows - 0.5, -0.5)
        (axes.set_ylabel if upright else axes.set_xlabel)("layer")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    best = sorted(sites, key=lambda site: -site.worth)[:3]
    label = f"{len(sites)} layers; worth most for their cost: " + ", ".join(
        f"{site.kind} of layer {site.layer} (rank {site.rank})" for site in best
    )
    table = Table(
        title,
        ("layer", "kind", f"worth for a {_unit(record)}", "of the largest", "rank"),
        tuple((site.layer, site.kind, site.worth, site.worth / top, site.rank) for site in sites),
    )
    return Chart(title, out[0], label, table, _caption(record))


def _draw_cells(
    figure: Any,
    axes: Any,
    sites: Sequence[MapSite],
    kinds: Sequence[str],
    layers: Sequence[int],
    ends: tuple[float, float],
    unit: str,
    *,
    upright: bool,
) -> None:
    """A rectangle a layer with its rank, and the scale of the shades beside the map."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm, to_rgb
    from matplotlib.patches import Rectangle

    red, green, blue = to_rgb(charts.colour(0))
    steps = [_WEAKEST + (_STRONGEST - _WEAKEST) * step / (_SHADES - 1) for step in range(_SHADES)]
    # Shades are one colour more or less opaque, so that they are right on a light and on a dark page.
    shades = ListedColormap([(red, green, blue, step) for step in steps])
    scale = LogNorm(*ends, clip=True)
    small = max(len(kinds), len(layers)) > _MOST_COLUMNS
    for site in sites:
        x, y = layers.index(site.layer), kinds.index(site.kind)
        if upright:
            x, y = y, x
        opacity = shades(scale(max(site.worth, ends[0])))[3]
        axes.add_patch(
            Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=charts.colour(0), alpha=opacity, linewidth=0)
        )
        shown, ink = (str(site.rank), charts.INK) if site.rank else ("·", charts.MUTED)
        axes.text(x, y, shown, ha="center", va="center", color=ink, fontsize=7 if small else 8)
    bar = figure.colorbar(
        ScalarMappable(scale, shades), ax=axes, location="bottom", aspect=40, shrink=0.7, pad=0.02, drawedges=False
    )
    bar.set_label(f"worth for a {unit} (log scale)")
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)
    bar.ax.minorticks_off()
    ticks = (ends[0], math.sqrt(ends[0] * ends[1]), ends[1])
    bar.set_ticks(list(ticks), labels=[f"{tick:.1e}" for tick in ticks])


def _unit(record: Mapping[str, Any]) -> str:
    return "millisecond" if record["sensitivity"].get("unit") == "ms" else "byte"


def _caption(record: Mapping[str, Any]) -> str:
    found = record["sensitivity"]
    caption = (
        "The stronger the colour, the more a layer's first ranks are worth for what they cost. Number: the rank that it gets; a "
        "dot: none."
    )
    measure, kept = found.get("measure"), found.get("kept")
    if isinstance(measure, str):
        caption += f" Measured by {measure}."
    if found.get("unit") == "ms" and isinstance(found.get("target"), str):
        caption += f" Costs are milliseconds, measured for {found['target']}."
    if kept == "uniform":
        caption += " Uniform ranks scored better and were kept; these were not."
    return caption
