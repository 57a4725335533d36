"""Weights that lie on a grid of 4 bits already are found and kept to the bit; others are not taken for such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepeft.bundle import SlotTable
from edgepeft.quantize.calibrated import nearest, nearest_in, on_stored_grid
from edgepeft.quantize.counts import count_quantized
from edgepeft.quantize.mixed import FORMS, MEASURED, OFFSET, options_of
from edgepeft.quantize.nbits import write
from edgepeft.quantize.packing import Form
from edgepeft.quantize.read_back import read_back
from edgepeft.quantize.stored_grid import stored_grid
from edgepeft.quantize.weights import Matrix, matrices
from edgepeft.runtime.sessions import open_session

ROWS, COLUMNS = 40, 96
FORM = Form(4, 32)


def scales(rng: np.random.Generator) -> np.ndarray:
    """One of each block, as float16 holds it: ``[ROWS, blocks, 1]``."""
    return rng.uniform(0.005, 0.05, (ROWS, COLUMNS // 32, 1)).astype(np.float16).astype(np.float32)


def levels(rng: np.random.Generator, low: int = 0, high: int = 15) -> np.ndarray:
    return rng.integers(low, high + 1, (ROWS, COLUMNS // 32, 32)).astype(np.float32)


def q4_0(seed: int = 0) -> np.ndarray:
    """A scale a block, levels -8 … 7, of which blocks need not have all."""
    rng = np.random.default_rng(seed)
    return np.float32(scales(rng) * (levels(rng) - 8)).reshape(ROWS, COLUMNS)


def q4_1(seed: int = 0) -> np.ndarray:
    """A scale and a smallest number a block, both in float16."""
    rng = np.random.default_rng(seed)
    scale = scales(rng)
    least = (scale * rng.uniform(-14, -1, scale.shape)).astype(np.float16).astype(np.float32)
    return np.float32(scale * levels(rng) + least).reshape(ROWS, COLUMNS)


def whole_zeros(seed: int = 0) -> np.ndarray:
    """A scale and a whole zero point for 96 columns, as AWQ and GPTQ have: a block of 32 sees a part of the levels."""
    rng = np.random.default_rng(seed)
    zero = rng.integers(0, 16, (ROWS, 1, 1))
    narrow = np.clip(np.rint(rng.normal(8, 2, (ROWS, COLUMNS // 32, 32))), 0, 15)
    return np.float32(scales(rng)[:, :1] * (narrow - zero)).reshape(ROWS, COLUMNS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [q4_0, whole_zeros])
def test_where_zero_is_a_level_weights_stay_to_the_bit(make, seed: int) -> None:
    weight = make(seed)
    found = stored_grid(weight, FORM)
    assert found is not None
    assert found.offsets is None
    # float16 scales come back exactly, so nothing at all is lost; rounding to a grid of one's own loses a good part of a step.
    assert np.array_equal(found.numbers(), weight)
    assert np.abs(nearest(weight, 4, half=True).numbers() - weight).max() > 1e-3
    assert np.array_equal(nearest_in(weight, FORM).numbers(), weight)


@pytest.mark.parametrize("seed", range(3))
def test_where_it_is_not_offsets_say_the_rest(seed: int) -> None:
    weight = q4_1(seed)
    found = stored_grid(weight, FORM)
    assert found is not None
    assert found.offsets is not None
    assert np.abs(found.numbers() - weight).max() < 1e-6
    assert np.abs(found.offsets).max() <= 0.51 * found.blocks.grid.scales.astype(np.float32).max()
    # Without offsets such weights are rounded to the nearest grid with whole zero points, as others are.
    assert not np.array_equal(nearest_in(weight, FORM).numbers(), weight)


def test_what_bfloat16_made_of_such_numbers_is_found_too() -> None:
    weight = q4_0()
    short = (weight.view(np.uint32) + 0x7FFF & 0xFFFF0000).view(np.float32)
    assert np.abs(short - weight).max() > 0
    found = stored_grid(short, FORM)
    assert found is not None
    assert found.offsets is None
    assert np.abs(found.numbers() - short).max() <= np.abs(weight).max() / 128


def test_blocks_of_one_number() -> None:
    weight = q4_0()
    weight[0, :32], weight[1, 32:64], weight[2, 64:] = 0, 0.25, -0.125
    found = stored_grid(weight, FORM)
    assert found is not None
    assert np.array_equal(found.numbers(), weight)


def test_what_lies_on_no_grid() -> None:
    rng = np.random.default_rng(0)
    assert stored_grid(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32), FORM) is None
    noisy = q4_0() + rng.uniform(-0.01, 0.01, (ROWS, COLUMNS)).astype(np.float32)
    assert stored_grid(noisy, FORM) is None
    one = q4_0()
    one[17, 40] += 0.02  # a row that is not among those looked at first
    assert stored_grid(one, FORM) is None
    assert stored_grid(q4_0(), Form(8, 32)) is None
    assert stored_grid(q4_0()[:, :80], FORM) is None  # a last block that is not full
    wider = np.float32(scales(rng) * levels(rng, 0, 31)).reshape(ROWS, COLUMNS)
    assert stored_grid(wider, FORM) is None
    tiny = q4_1() * np.float32(1e-6)  # float16 holds neither scales nor offsets
    assert stored_grid(tiny, FORM) is None


def graph_of(weight: np.ndarray, rank: int) -> ir.Model:
    """``x @ weight.T`` twice, with ``x`` of that rank."""
    dims = ["batch", "sequence"][: rank - 1]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([*dims, COLUMNS]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="layers")
    for name in ("one", "two"):
        value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(weight.T), name=name))
        value.shape, value.type = ir.Shape([COLUMNS, ROWS]), ir.TensorType(ir.DataType.FLOAT)
        graph.register_initializer(value)
        node = ir.node("MatMul", [x, value], name=f"{name}/MatMul")
        node.outputs[0].name, node.outputs[0].type = f"{name}_out", ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([*dims, ROWS])
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("rank", [2, 3])
def test_layers_with_offsets_compute_what_they_did(rank: int, tmp_path: Path) -> None:
    """Against float64; the kernel rounds activations to 8 bits, so the same kernel over random 4-bit numbers sets the tolerance."""
    weight = q4_1()
    model = graph_of(weight, rank)
    slots = SlotTable()
    for matrix in list(matrices(model.graph, slots, width=32)):
        assert on_stored_grid(matrix, FORM, offsets=False) is None
        rounded = on_stored_grid(matrix, FORM, offsets=True)
        assert rounded is not None
        assert np.abs(rounded.weight() - weight).max() < 1e-5
        write(model.graph, matrix, rounded)
    ir.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(3).standard_normal((2, 5, COLUMNS)[3 - rank :]).astype(np.float32) + 0.5
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    for found in open_session(tmp_path / "m.onnx").run(None, {"x": x}):
        assert found.shape == expected.shape
        # Half a step of 8 bits in each of 96 products, no whole-number zero point off by half a step of 4 bits.
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    counted = count_quantized(model, slots)
    assert counted.share == 1
    for each in read_back(ir.load(tmp_path / "m.onnx")):
        assert np.abs(each.numbers - weight).max() < 1e-5


def matrix(weight: np.ndarray) -> Matrix:
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    return Matrix(value, (ir.node("MatMul", [value]),), (), transposed=True)


def test_forms_of_a_matrix_on_a_grid() -> None:
    assert [option.form for option in options_of(matrix(q4_0()), 1e-6)] == [MEASURED]
    found = {option.form: option for option in options_of(matrix(q4_1()), 0.02)}
    assert OFFSET in found
    assert found[OFFSET].loss == 0
    # What is left is the nodes that add them.
    assert 0 < found[OFFSET].bytes - found[MEASURED].bytes - 2 * ROWS * (COLUMNS // 32) < 1500
    assert "with offsets" in str(OFFSET)
    noisy = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    assert {option.form for option in options_of(matrix(noisy), 0.02)} <= set(FORMS)
