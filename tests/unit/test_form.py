"""The canonical form: what an edit accepts and what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from edgepeft.adapters.edits import Adapter, InGain, LowRank, OutGain, Override, Prefix, SiteEdit
from edgepeft.errors import AdapterError
from edgepeft.graph.merge import merged_weight


def low(ins: int = 4, outs: int = 6, rank: int = 2) -> LowRank:
    rng = np.random.default_rng(0)
    return LowRank(a=rng.standard_normal((ins, rank)), b=rng.standard_normal((rank, outs)))


def test_arrays_become_contiguous_float32() -> None:
    edit = LowRank(a=np.asfortranarray(np.ones((4, 2), np.float64)), b=np.ones((6, 2), np.float16).T)
    for array in (edit.a, edit.b):
        assert array.dtype == np.float32
        assert array.flags["C_CONTIGUOUS"]
    assert edit.rank == 2
    assert edit.delta().shape == (4, 6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LowRank(a=np.ones((4, 2)), b=np.ones((3, 6))), "differ in rank"),
        (lambda: LowRank(a=np.ones(4), b=np.ones((3, 6))), "2 dimension"),
        (lambda: LowRank(a=np.full((4, 2), np.nan), b=np.ones((2, 6))), "NaN"),
        (lambda: Override(np.array([np.inf])), "infinite"),
        (lambda: Override(np.array([1e300])), "infinite"),
        (lambda: OutGain(np.ones((2, 2))), "1 dimension"),
        (lambda: InGain(np.ones((2, 2))), "1 dimension"),
        (lambda: Prefix(np.ones((2, 2))), "5 dimension"),
        (lambda: SiteEdit(), "at least one edit"),
        (lambda: SiteEdit(low_rank=low(), out_gain=OutGain(np.ones(5))), "disagree"),
        (lambda: SiteEdit(low_rank=low(), in_gain=InGain(np.ones(5))), "disagree"),
    ],
)
def test_refused(build: object, words: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(AdapterError, match=words):
        build()  # type: ignore[operator]


def test_sizes() -> None:
    edit = SiteEdit(low_rank=low(), out_gain=OutGain(np.ones(6)), in_gain=InGain(np.ones(4)))
    assert (edit.in_features, edit.out_features, edit.rank) == (4, 6, 2)
    assert SiteEdit(out_gain=OutGain(np.ones(6))).in_features is None
    assert SiteEdit(in_gain=InGain(np.ones(4))).rank == 0


def test_adapter_counts_and_scalability() -> None:
    adapter = Adapter("x", "LoRA", {"s": SiteEdit(low_rank=low())}, {"b": Override(np.ones(3))})
    assert adapter.parameters == 4 * 2 + 2 * 6 + 3
    assert adapter.scalable
    assert adapter.renamed("y").name == "y"
    gained = Adapter("x", "DoRA", {"s": SiteEdit(low_rank=low(), out_gain=OutGain(np.ones(6)))})
    assert not gained.scalable
    assert gained.parameters == 4 * 2 + 2 * 6 + 6


def test_merged_weight_is_the_house_formula() -> None:
    """Reference: ``y = g * (W (l x) + ((l x) A) B)`` in float64 on random x. fp32 storage of W: 1e-5."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 4)).astype(np.float32)
    edit = SiteEdit(low(), OutGain(rng.standard_normal(6)), InGain(rng.standard_normal(4)))
    assert edit.low_rank is not None
    assert edit.out_gain is not None
    assert edit.in_gain is not None
    x = rng.standard_normal((5, 4))
    scaled = x * edit.in_gain.gain
    expected = edit.out_gain.gain * (scaled @ weight.T + scaled @ edit.low_rank.a @ edit.low_rank.b)
    np.testing.assert_allclose(x @ merged_weight(weight, edit).T, expected, atol=1e-5)
