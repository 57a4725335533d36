"""Parameters found in a graph by their numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgepeft.graph.locate.by_content import Location, float_initializers, locate, shared

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal((size, 4)).astype(np.float32) for size in (3, 2, 5))
BIAS = RNG.standard_normal(6).astype(np.float32)


def model(**arrays: np.ndarray) -> ir.Model:
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()]
    return ir.Model(ir.Graph([], [], nodes=[], initializers=values, name="g"), ir_version=10)


@pytest.mark.parametrize("transposed", [False, True])
def test_whole(transposed: bool) -> None:
    found = locate(model(w=np.ascontiguousarray(Q.T) if transposed else Q, b=BIAS), {"q": Q, "bias": BIAS})
    assert found["q"] == (Location("w", transposed=transposed, offset=0, size=3, packed=False),)
    assert found["bias"] == (Location("b", transposed=False, offset=0, size=6, packed=False),)


@pytest.mark.parametrize("transposed", [False, True])
def test_packed_blocks_are_read_and_written_in_place(transposed: bool) -> None:
    packed = np.concatenate([Q, K, V])
    packed = np.ascontiguousarray(packed.T) if transposed else packed
    found = locate(model(qkv=packed), {"q": Q, "k": K, "v": V})
    for name, array, offset in (("q", Q, 0), ("k", K, 3), ("v", V, 5)):
        assert found[name] == (Location("qkv", transposed=transposed, offset=offset, size=len(array), packed=True),)
        np.testing.assert_array_equal(found[name][0].read(packed), array)
    changed = packed.copy()
    found["k"][0].write(changed, np.zeros_like(K))
    assert not found["k"][0].read(changed).any()
    np.testing.assert_array_equal(found["q"][0].read(changed), Q)
    np.testing.assert_array_equal(found["v"][0].read(changed), V)


def test_one_different_number_is_not_found() -> None:
    other = Q.copy()
    other[-1, -1] += np.float32(1e-6)
    packed = np.concatenate([other, K])
    assert locate(model(w=other, p=packed), {"q": Q}) == {"q": ()}


def test_a_block_that_would_run_over_the_edge() -> None:
    assert locate(model(p=np.concatenate([K, Q[:2]])), {"q": Q}) == {"q": ()}


def test_shared_contents() -> None:
    zeros = np.zeros(4, np.float32)
    found = locate(model(z=zeros, w=Q), {"a.bias": zeros, "b.bias": zeros.copy(), "q": Q})
    assert shared(found, "a.bias") == ["b.bias"]
    assert shared(found, "q") == []
    assert shared(found, "unknown") == []


def test_two_places() -> None:
    found = locate(model(w=Q, t=np.ascontiguousarray(Q.T)), {"q": Q})
    assert {place.initializer for place in found["q"]} == {"w", "t"}


def test_only_float_tensors_count() -> None:
    graph = model(i=np.arange(6, dtype=np.int64), f=BIAS, h=BIAS.astype(np.float16), one=np.ones(1, np.float32))
    assert set(float_initializers(graph)) == {"f", "h"}
    assert locate(graph, {"bias": BIAS})["bias"][0].initializer == "f"


class TestScattered:
    """Rows that capture put into another order, or into several matrices."""

    WEIGHT = RNG.standard_normal((12, 4)).astype(np.float32)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_heads_in_another_order(self, transposed: bool) -> None:
        """Two heads of q, k, v with two rows each, stored as all q, all k, all v; the bias beside it alike."""
        order = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
        bias = RNG.standard_normal(12).astype(np.float32)
        held = self.WEIGHT[order].T if transposed else self.WEIGHT[order]
        graph = model(qkv=np.ascontiguousarray(held), b=bias[order], other=Q)
        found = locate(graph, {"x.weight": self.WEIGHT, "x.bias": bias})
        places = [(p.offset, p.size, p.start, p.step, p.of) for p in found["x.weight"]]
        assert places == [(offset, 2, order[offset], 1, 12) for offset in range(0, 12, 2)]
        assert all(p.transposed is transposed and p.packed for p in found["x.weight"])
        assert [(p.initializer, p.offset, p.start) for p in found["x.bias"]] == [("b", p[0], p[2]) for p in places]

    def test_interleaved_rows_are_one_run_in_each_matrix(self) -> None:
        graph = model(gate=np.ascontiguousarray(self.WEIGHT[::2].T), up=np.ascontiguousarray(self.WEIGHT[1::2].T))
        found = {p.initializer: p for p in locate(graph, {"gate_up": self.WEIGHT})["gate_up"]}
        assert (found["gate"].start, found["gate"].step, found["gate"].size, found["gate"].packed) == (0, 2, 6, False)
        assert (found["up"].start, found["up"].step, found["up"].size) == (1, 2, 6)
        for place in found.values():
            array = float_initializers(graph)[place.initializer].copy()
            np.testing.assert_array_equal(place.read(array), self.WEIGHT[place.rows])
            place.write(array, self.WEIGHT + 1)
            np.testing.assert_array_equal(place.read(array), self.WEIGHT[place.rows] + 1)

    def test_a_row_of_zeros_goes_with_its_neighbours(self) -> None:
        """Rows that many matrices hold say nothing by themselves."""
        weight = self.WEIGHT.copy()
        weight[2] = 0
        graph = model(first=weight[6:], second=weight[:6], zeros=np.zeros((3, 4), np.float32))
        found = locate(graph, {"w": weight})["w"]
        assert [(p.initializer, p.offset, p.size, p.start) for p in found] == [("first", 0, 6, 6), ("second", 0, 6, 0)]

    @pytest.mark.parametrize("case", ["a row is missing", "two rows are one", "held twice"])
    def test_doubt_is_no_location(self, case: str) -> None:
        weight = self.WEIGHT.copy()
        if case == "two rows are one":
            weight[3] = weight[0]
        held = weight[[6, 7, 8, 9, 10, 11, 0, 1, 2, 4, 5]] if case != "held twice" else weight[::-1]
        twice = {"again": np.ascontiguousarray(held)} if case == "held twice" else {}
        assert locate(model(w=np.ascontiguousarray(held), **twice), {"w": weight})["w"] == ()
