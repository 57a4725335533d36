"""Folds to judge settings on: which rows train and which judge, the same for all settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

#: Rows to judge on that are enough: beyond, one split of the data is as good as several.
_ENOUGH_ROWS = 200
_MOST_FOLDS = 4
#: Each fold is a training: with few rows, eight of them are what a search of minutes can pay for a setting.
_MOST_TRAININGS = 8
_HELD_SHARE = 0.2


def make_folds(
    targets: Sequence[Any], seed: int, keys: Sequence[Hashable] | None = None
) -> list[tuple[list[int], list[int]]]:
    """Places to train and to judge on: one split for large data, repeated stratified cross-validation for small.

    Folds are as many as the rarest label allows, four at most, and are drawn anew until 200 judgements are made or there are eight.
    Each label is on both sides of every fold.

    Args:
        targets: What each row is to give.
        seed: Of the draws.
        keys: What makes rows the same input (:func:`.leaks.row_keys`): such rows stay on one side. By default all differ.
    """
    if keys is not None:
        return _folds_of_groups(targets, seed, keys)
    generator = np.random.default_rng(seed)
    places: dict[Any, list[int]] = defaultdict(list)
    for place, target in enumerate(targets):
        places[target].append(place)
    least = min(len(mine) for mine in places.values())
    if _HELD_SHARE * len(targets) >= _ENOUGH_ROWS / 2 and _HELD_SHARE * least >= 2:
        held = sorted(
            place for mine in places.values() for place in generator.permutation(mine)[: round(_HELD_SHARE * len(mine))]
        )
        return [_sides(len(targets), held)]
    count = min(_MOST_FOLDS, least)
    repeats = max(1, min(_MOST_TRAININGS // count, -(-_ENOUGH_ROWS // len(targets))))
    folds = []
    for _ in range(repeats):
        parts: list[list[int]] = [[] for _ in range(count)]
        for mine in places.values():
            for turn, place in enumerate(generator.permutation(mine)):
                parts[turn % count].append(int(place))
        folds += [_sides(len(targets), sorted(part)) for part in parts]
    return folds


def _folds_of_groups(targets: Sequence[Any], seed: int, keys: Sequence[Hashable]) -> list[tuple[list[int], list[int]]]:
    """Folds of the first row of each key; the others follow it."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        groups[key].append(place)
    alike = list(groups.values())
    return [
        _sides(len(targets), sorted(place for number in held for place in alike[number]))
        for _, held in make_folds([targets[mine[0]] for mine in alike], seed)
    ]


def _sides(rows: int, held: list[int]) -> tuple[list[int], list[int]]:
    apart = set(held)
    return [place for place in range(rows) if place not in apart], [int(place) for place in held]
