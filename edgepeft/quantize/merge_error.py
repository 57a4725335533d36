"""How much of a merged adapter a recipe's rounding leaves.

A merged weight is rounded as a whole, and an adapter's change is often smaller than a rounding step: then it is gone, or
drowned in noise. Beside the weights, in slots, it keeps its float numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .recipes import RECIPES

#: Rows of a site that are looked at: each is rounded by itself, and some hundred tell the same as all.
ROWS = 256
#: A change that arrives with less than this relative error is not worth a warning.
NOTABLE = 0.1


def lost_by_rounding(weights: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """``||(Q(W + Δ) - Q(W)) - Δ|| / ||Δ||`` over all ``weights``, by recipe: 0 keeps the change, 1 and more loses it.

    ``weights`` are pairs of a linear weight ``[out, in]`` before and after the merge.
    """
    wanted = 0.0
    lost = dict.fromkeys(RECIPES, 0.0)
    for before, after in weights:
        rows = np.unique(np.linspace(0, len(before) - 1, ROWS).astype(int))
        one, two = before[rows].astype(np.float32), after[rows].astype(np.float32)
        change = two.astype(np.float64) - one
        wanted += float(np.square(change).sum())
        for variant, recipe in RECIPES.items():
            kept = recipe.rounded(two).astype(np.float64) - recipe.rounded(one)
            lost[variant] += float(np.square(kept - change).sum())
    return {variant: round(float(np.sqrt(each / wanted)), 4) for variant, each in lost.items()} if wanted else {}
