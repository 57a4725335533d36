"""Which rows of a batch go on where, and what becomes of their cache."""

from __future__ import annotations

import numpy as np
import pytest

from edgepeft.runtime.generation.decoder import moved
from edgepeft.runtime.generation.loop import fewest_moves


@pytest.mark.parametrize(
    ("left", "order"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([1], [1]),
        ([0, 2, 3, 5], [0, 5, 2, 3]),
        ([4, 5, 6], [6, 5, 4]),
        ([2, 3], [3, 2]),
        ([], []),
    ],
)
def test_only_rows_behind_the_others_move(left: list[int], order: list[int]) -> None:
    assert fewest_moves(left) == order


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0, 4, 2], [3, 4], [4], [1, 2, 3, 4], [2, 2, 4], [2, 0, 1], [1, 0]])
def test_a_cache_of_these_rows(rows: list[int]) -> None:
    """The filled places are the rows'; memory is new only where a row moves back."""
    cache = np.random.default_rng(0).standard_normal((5, 2, 6, 3)).astype(np.float32)
    wanted = cache[rows][:, :, :4].copy()
    found = moved(cache, rows, 4)
    np.testing.assert_array_equal(found[:, :, :4], wanted)
    assert found.flags.c_contiguous
    assert np.shares_memory(found, cache) == all(source >= place for place, source in enumerate(rows))
