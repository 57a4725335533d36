"""Edits to slot tensors: packed matrices, sizes, labels, and what has no slot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgepeft.adapters.edits import Adapter, InGain, LowRank, OutGain, Override, Prefix, SiteEdit
from edgepeft.adapters.fill import fill_slots
from edgepeft.adapters.prefix import fill_prefix
from edgepeft.bundle import LinearSlot, OverrideSlot, SlotPart, SlotTable
from edgepeft.errors import AdapterMismatchError, UnsupportedAdapterError

IN, SIZES = 4, {"q": 3, "k": 2, "v": 5}
RNG = np.random.default_rng(0)


def table(gains: bool = True) -> SlotTable:
    parts, offset = [], 0
    for site, size in SIZES.items():
        parts.append(SlotPart(site=site, offset=offset, size=size))
        offset += size
    packed = LinearSlot(
        name="qkv", in_features=IN, out_features=offset, parts=tuple(parts), a="qkv.A", b="qkv.B", rank="qkv.rank",
        out_gain="qkv.g" if gains else None, weight="w",
    )  # fmt: skip
    up = LinearSlot(
        name="up", in_features=IN, out_features=7, parts=(SlotPart(site="up", offset=0, size=7),), a="up.A", b="up.B",
        rank="up.rank", in_gain="up.l" if gains else None, weight="w2",
    )  # fmt: skip
    overrides = (
        OverrideSlot(parameter="head.weight", tensor="head.weight.slot", shape=("adapter_batch", IN, "labels"),
                     layout="matmul", per_row=True),
        OverrideSlot(parameter="head.bias", tensor="head.bias.slot", shape=("adapter_batch", 1, "labels"), layout="row",
                     per_row=True),
        OverrideSlot(parameter="norm.bias", tensor="norm.bias", shape=(IN,), layout="as_is", per_row=False),
    )  # fmt: skip
    return SlotTable(linear=(packed, up), overrides=overrides)


def low(out: int, rank: int, ins: int = IN) -> SiteEdit:
    return SiteEdit(low_rank=LowRank(a=RNG.standard_normal((ins, rank)), b=RNG.standard_normal((rank, out))))


def adapter(sites: dict[str, SiteEdit], overrides: dict[str, np.ndarray] | None = None, **more: Any) -> Adapter:
    return Adapter("x", "LoRA", sites, {name: Override(t) for name, t in (overrides or {}).items()}, **more)


def test_packed_is_block_diagonal() -> None:
    """Reference: each site by itself, ``x A B`` in numpy. The zeros add nothing: 1e-6 of fp32."""
    sites = {"q": low(3, 2), "k": low(2, 4), "v": low(5, 1)}
    filled = fill_slots(adapter(sites), table())
    assert filled.tensors["qkv.A"].shape == (1, IN, 7)
    assert filled.tensors["qkv.B"].shape == (1, 7, 10)
    assert filled.ranks == {"qkv": 7}
    x = RNG.standard_normal((6, IN)).astype(np.float32)
    alone = [x @ e.low_rank.a @ e.low_rank.b for e in sites.values() if e.low_rank is not None]
    np.testing.assert_allclose(
        x @ filled.tensors["qkv.A"][0] @ filled.tensors["qkv.B"][0], np.concatenate(alone, 1), atol=1e-6
    )


def test_part_of_a_packed_matrix() -> None:
    filled = fill_slots(adapter({"k": low(2, 4)}), table())
    delta = filled.tensors["qkv.A"][0] @ filled.tensors["qkv.B"][0]
    assert not delta[:, :3].any()
    assert not delta[:, 5:].any()
    assert delta[:, 3:5].all()
    assert set(filled.tensors) == {"qkv.A", "qkv.B"}, "slots that are not touched keep their defaults"


def test_gains() -> None:
    edits = {
        "k": SiteEdit(low_rank=low(2, 1).low_rank, out_gain=OutGain(np.array([2.0, 3.0]))),
        "up": SiteEdit(in_gain=InGain(np.arange(4))),
    }
    filled = fill_slots(adapter(edits), table())
    np.testing.assert_array_equal(filled.tensors["qkv.g"], [[[1, 1, 1, 2, 3, 1, 1, 1, 1, 1]]])
    np.testing.assert_array_equal(filled.tensors["up.l"], [[[0, 1, 2, 3]]])
    assert filled.ranks["up"] == 0
    for site in edits:
        with pytest.raises(AdapterMismatchError, match=r"no gain slot.*Export the base again"):
            fill_slots(adapter({site: edits[site]}), table(gains=False))


def test_overrides_take_their_layouts() -> None:
    weight, bias = RNG.standard_normal((5, IN)), RNG.standard_normal(5)
    filled = fill_slots(adapter({}, {"head.weight": weight, "head.bias": bias}), table())
    np.testing.assert_allclose(filled.tensors["head.weight.slot"][0], weight.T, rtol=1e-6)  # float32 of float64
    assert filled.tensors["head.bias.slot"].shape == (1, 1, 5)
    assert (filled.labels, filled.per_row) == (5, True)
    assert not fill_slots(adapter({}, {"norm.bias": np.ones(IN)}), table()).per_row


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (adapter({"q": low(9, 2)}), "site q: its out size is 9, the base's is 3"),
        (adapter({"q": low(3, 2, ins=8)}), "site q: its in size is 8, the base's is 4"),
        (adapter({"nowhere": low(3, 2)}), r"edits nowhere, where this base has no slot.*all-linear"),
        (adapter({}, {"other.bias": np.ones(3)}), "edits other.bias"),
        (adapter({}, {"norm.bias": np.ones(3)}), r"norm.bias: shape \(3,\)"),
        (adapter({}, {"head.weight": np.ones((5, 9))}), "head.weight: shape"),
        (adapter({}, {"head.weight": np.ones((5, IN)), "head.bias": np.ones(4)}), "5 labels in one parameter and 4"),
        (adapter({}, {"head.weight": np.ones((5, IN))}, labels=("a", "b")), "head has 5 labels, its record names 2: a, b"),
    ],
)  # fmt: skip
def test_mismatches(given: Adapter, words: str) -> None:
    with pytest.raises(AdapterMismatchError, match=words):
        fill_slots(given, table())


def test_fresh_parameters_must_be_brought() -> None:
    fresh = ("head.weight", "head.bias")
    with pytest.raises(AdapterMismatchError, match=r"does not hold head.weight, head.bias.*modules_to_save"):
        fill_slots(adapter({"q": low(3, 2)}), table(), fresh=fresh)
    head = {"head.weight": np.ones((2, IN)), "head.bias": np.ones(2)}
    assert fill_slots(adapter({}, head), table(), fresh=fresh).labels == 2


TAKES: dict[str, tuple[int | str, ...]] = {f"prefix.0.{kind}": (1, 2, "prefix_length", 4) for kind in ("key", "value")}


def test_a_prefix_becomes_a_tensor_for_each_cache() -> None:
    states = RNG.standard_normal((1, 2, 2, 3, 4)).astype(np.float32)
    found = fill_prefix(adapter({}, prefix=Prefix(states)), TAKES, {}, 10)
    assert set(found) == set(TAKES)
    assert np.array_equal(found["prefix.0.key"][0], states[0, 0])
    assert np.array_equal(found["prefix.0.value"][0], states[0, 1])
    assert fill_prefix(adapter({}), TAKES, {}, 10) == {}


def test_a_prefix_needs_a_cache_that_forgets_nothing() -> None:
    prefixed = adapter({}, prefix=Prefix(np.ones((1, 2, 2, 3, 4))))
    with pytest.raises(UnsupportedAdapterError, match="no key/value cache"):
        fill_prefix(prefixed, {}, {}, None)
    for config in (
        {"sliding_window": 8},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"text_config": {"layer_types": ["linear_attention"]}},
        {"model_type": "bloom"},
    ):
        with pytest.raises(UnsupportedAdapterError, match=r"sliding_attention|linear_attention|bloom lays"):
            fill_prefix(prefixed, TAKES, config, None)
    for config in (
        {"sliding_window": 8, "use_sliding_window": False},
        {"sliding_window": 8, "layer_types": ["full_attention"]},
    ):
        assert fill_prefix(prefixed, TAKES, config, None)


def test_a_prefix_of_another_base() -> None:
    for shape in ((2, 2, 2, 3, 4), (1, 2, 1, 3, 4), (1, 2, 2, 3, 8)):
        with pytest.raises(AdapterMismatchError, match="It was made for another base"):
            fill_prefix(adapter({}, prefix=Prefix(np.ones(shape))), TAKES, {}, None)
    with pytest.raises(AdapterMismatchError, match="leaves no place for a prompt"):
        fill_prefix(adapter({}, prefix=Prefix(np.ones((1, 2, 2, 3, 4)))), TAKES, {}, 3)
