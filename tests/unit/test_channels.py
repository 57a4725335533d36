"""8-bit weights: the rounding, and the bound that keeps 16-bit sums of two products from saturating."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepeft.quantize.int8 import PAIR, TOP, quantize_channels


@given(
    st.integers(1, 6), st.integers(1, 33), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 3.0]),
)  # fmt: skip
def test_rounding_and_the_bound(rows: int, columns: int, seed: int, tails: float) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((rows, columns)) * rng.standard_exponential((rows, columns)) ** tails).astype("f4")
    quantized, scales = quantize_channels(weight)
    assert quantized.dtype == np.int8
    assert scales.dtype == np.float32
    # Half a unit, and what float32 loses on the way.
    assert np.all(np.abs(quantized * scales[:, None] - weight) <= scales[:, None] * 0.5001)
    wide = np.abs(quantized.astype(int))
    assert wide.max() <= TOP
    pairs = np.pad(quantized.astype(int), ((0, 0), (0, columns % 2))).reshape(rows, -1, 2)
    together = np.maximum(np.maximum(pairs, 0).sum(2), np.maximum(-pairs, 0).sum(2))
    # An activation is at most 255: two products of one sign stay within 16 bits.
    assert together.max() <= PAIR
    assert np.iinfo(np.int16).max >= 255 * PAIR
    # The range is used: every channel reaches one of its two limits.
    assert np.all((together.max(1) >= PAIR - 2) | (wide.max(1) == TOP) | (scales == 0))


def test_extremes() -> None:
    weight = np.array([[0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [0.0, 1e-38, 0.0]], np.float32)
    quantized, scales = quantize_channels(weight)
    assert quantized[0].tolist() == [0, 0, 0], "a channel of zeros stays one"
    assert scales[0] == 0
    assert quantized[1].tolist() == [127, -127, 127], "neighbours of two signs do not add up"
    assert quantized[2, :2].tolist() in ([64, 64], [63, 63])
    assert quantized[2, 2] < 0
    assert np.isfinite(quantized * scales[:, None]).all()
