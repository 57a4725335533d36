"""How much of a merged adapter a recipe's rounding leaves.

A merged weight is rounded as a whole, and an adapter's change is often smaller than a rounding step: then it is gone, or
drowned in noise. Beside the weights, in slots, it keeps its float numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from .calibrated import nearest_in
from .packing import Form
from .recipes import RECIPES

#: Rows of a site that are looked at: each is rounded by itself, and some hundred tell the same as all.
ROWS = 256
#: A change that arrives with less than this relative error is not worth a warning.
NOTABLE = 0.1


def key_of(variant: str, method: str | None) -> str | None:
    """What the error of a variant made by a method is called; ``None`` where it is not known without running the model."""
    return {None: variant, "rtn": variant, "mse": f"{variant} mse"}.get(method)


def all_ways() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """How each recipe rounds a weight ``[out, in]``, and each method that needs no run of the model, by :func:`key_of`."""
    found = {variant: recipe.rounded for variant, recipe in RECIPES.items()}
    searched = {
        f"{v} mse": lambda weight: nearest_in(weight, Form()).numbers() for v, r in RECIPES.items() if r.searched
    }
    return {**found, **searched}


def lost_by_rounding(
    weights: Iterable[tuple[np.ndarray, np.ndarray]],
    ways: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> dict[str, float]:
    """``||(Q(W + Δ) - Q(W)) - Δ|| / ||Δ||`` over all ``weights``, by recipe: 0 keeps the change, 1 and more loses it.

    ``weights`` are pairs of a linear weight ``[out, in]`` before and after the merge; ``ways`` are functions that round one, those
    of the recipes by default.
    """
    ways = {variant: recipe.rounded for variant, recipe in RECIPES.items()} if ways is None else ways
    wanted = 0.0
    lost = dict.fromkeys(ways, 0.0)
    for before, after in weights:
        rows = np.unique(np.linspace(0, len(before) - 1, ROWS).astype(int))
        one, two = before[rows].astype(np.float32), after[rows].astype(np.float32)
        change = two.astype(np.float64) - one
        wanted += float(np.square(change).sum())
        for variant, rounded in ways.items():
            kept = rounded(two).astype(np.float64) - rounded(one)
            lost[variant] += float(np.square(kept - change).sum())
    return {variant: round(float(np.sqrt(each / wanted)), 4) for variant, each in lost.items()} if wanted else {}
