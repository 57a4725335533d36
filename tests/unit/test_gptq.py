"""Rounding weights to what their layers see: grids, GPTQ, biases, corrections, and how they lie in a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepeft.bundle import SlotTable
from edgepeft.errors import BundleError
from edgepeft.graph.bit_packing import pack, unpack
from edgepeft.graph.passes.unpack_int4 import SetAccuracyLevel, UnpackInt4
from edgepeft.graph.quantized_weights import quantized_weights
from edgepeft.quantize.calibrated import calibrated, nearest
from edgepeft.quantize.counts import count_quantized
from edgepeft.quantize.gptq import Hessian, _rounded, bias_of, damped, gptq, inverse_factor, refit_scales
from edgepeft.quantize.grids import fit_grid, half_scales
from edgepeft.quantize.low_rank import correction
from edgepeft.quantize.moments import measure_moments
from edgepeft.quantize.packing import BITS, Blocks, Grid
from edgepeft.quantize.q4 import round_to_blocks
from edgepeft.runtime.sessions import open_session

RNG = np.random.default_rng(0)
IN, OUT, ROWS = 96, 40, 600


def inputs_of_a_layer(width: int = IN) -> np.ndarray:
    """Correlated, not centred, and of very different sizes, as activations are: float32 ``[ROWS, width]``."""
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((width, width)) * np.geomspace(3, 0.05, width)
    return (rng.standard_normal((ROWS, width)) @ mixing + 2 * rng.standard_normal(width)).astype(np.float32)


X = inputs_of_a_layer()
MEAN, COVARIANCE = X.mean(0), np.cov(X.T, bias=True).astype(np.float32)
W = RNG.standard_normal((OUT, IN)).astype(np.float32) + 0.3


def lost(error: np.ndarray, bias: np.ndarray | float = 0.0) -> float:
    """Mean square of what a layer's outputs lack."""
    return float(np.square(X @ error.T - bias).mean())


@pytest.mark.parametrize("bits", BITS)
def test_bytes_hold_the_numbers(bits: int) -> None:
    q = RNG.integers(0, 1 << bits, (3, 11)).astype(np.uint8)
    packed = pack(q, bits)
    each = 8 // bits
    assert packed.shape == (3, -(-11 // each))
    for column in range(11):
        byte, place = divmod(column, each)
        assert np.array_equal((packed[:, byte] >> (place * bits)) & ((1 << bits) - 1), q[:, column])
    assert np.array_equal(unpack(packed, bits, 3)[:, :11], q)


def test_a_grid_holds_what_lies_on_it() -> None:
    q = RNG.integers(0, 16, (5, 64)).astype(np.uint8)
    q[:, ::32], q[:, 1::32] = 0, 15
    grid = Grid(4, 32, np.abs(RNG.standard_normal((5, 2))).astype(np.float32) + 0.1, np.full((5, 2), 5, np.uint8))
    numbers = grid.numbers(q)
    assert np.array_equal(grid.nearest(numbers), q)
    np.testing.assert_allclose(nearest(numbers, 4).numbers(), numbers, atol=1e-5)


def test_important_columns_are_met_better() -> None:
    part = RNG.standard_normal((200, 32)).astype(np.float32)
    part[:, 3] *= 6  # an outlier that nothing multiplies
    cost = np.ones(32, np.float32)
    cost[3] = 1e-4

    def error(importance: np.ndarray | None) -> float:
        scale, zero = fit_grid(part, 4, importance)
        grid = Grid(4, 32, scale[:, None], zero[:, None].astype(np.uint8))
        return float((np.square(part - grid.numbers(grid.nearest(part))) @ cost).sum())

    assert error(cost) < 0.8 * error(None)


def test_the_factor_is_that_of_the_inverse() -> None:
    for width in (IN, 700):  # the second is inverted by halves, of unequal sizes
        x = inputs_of_a_layer(width)
        h = damped(np.cov(x.T), 0.1)
        factor = inverse_factor(h).astype(np.float64)
        assert np.array_equal(factor, np.triu(factor))
        np.testing.assert_allclose(factor.T @ factor @ h, np.eye(width), atol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_gptq_loses_less_than_rounding_to_nearest(bits: int) -> None:
    plain = W - nearest(W, bits).numbers()
    error = W - gptq(W, Hessian.of(COVARIANCE), bits=bits, block=32).numbers()
    assert lost(error, bias_of(error, MEAN)) < 0.5 * lost(plain, bias_of(plain, MEAN))
    # The bias puts back what is left on average, and here that is most of it.
    assert lost(error, bias_of(error, MEAN)) < 0.8 * lost(error)
    np.testing.assert_allclose((X @ error.T - bias_of(error, MEAN)).mean(0), 0, atol=1e-4)


def test_columns_of_large_activations_come_first() -> None:
    """Against the same grids with columns as they stand: what is rounded last has nothing left that could make up for it."""
    covariance = COVARIANCE[::-1, ::-1]  # the largest last
    found = gptq(W, Hessian.of(covariance), bits=4, block=32)
    as_they_stand = _rounded(W, found.grid, inverse_factor(damped(covariance)), np.arange(IN))
    plain = refit_scales(W, Blocks(found.grid, as_they_stand), damped(covariance))
    errors = [W - each.numbers() for each in (found, plain)]
    ordered, other = (float(np.einsum("ri,ij,rj->", error, covariance, error)) for error in errors)
    assert ordered < 0.8 * other


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_the_best_for_their_numbers(bits: int) -> None:
    """Never worse in what they minimize, and stationary: moving any scale a little loses."""
    h = damped(COVARIANCE)
    before = nearest(W, bits)
    after = refit_scales(W, before, h)
    assert np.array_equal(after.q, before.q)

    def cost(grid: Grid) -> float:
        error = W.astype(np.float64) - grid.numbers(before.q)
        return float(np.einsum("ri,ij,rj->", error, h, error))

    best = cost(after.grid)
    assert best < cost(before.grid)
    for factor in (0.99, 1.01):
        for block in range(after.grid.scales.shape[1]):
            scales = after.grid.scales.copy()
            scales[:, block] *= np.float32(factor)
            assert cost(Grid(bits, 32, scales, after.grid.zeros)) > best
    assert refit_scales(W, nearest(W, bits, half=True), h).grid.scales.dtype == np.float16


def test_a_block_of_zeros_keeps_its_scale() -> None:
    weight = W.copy()
    weight[3, 32:64] = 0
    before = nearest(weight, 4)
    after = refit_scales(weight, before, damped(COVARIANCE))
    assert 0 < after.grid.scales[3, 1] < 1e-30, "as small as before"
    assert np.isfinite(after.numbers()).all()
    assert (after.numbers()[3, 32:64] == 0).all()


def test_inputs_that_are_never_there() -> None:
    covariance = COVARIANCE.copy()
    covariance[7] = covariance[:, 7] = 0
    blocks = gptq(W, Hessian.of(covariance), bits=4, block=32)
    assert np.isfinite(blocks.numbers()).all()
    assert np.abs(blocks.numbers()[:, 7] - W[:, 7]).max() < 1  # still near: another text may bring it
    assert np.isfinite(gptq(W, Hessian.of(np.zeros_like(COVARIANCE)), bits=4, block=32).numbers()).all()


@pytest.mark.parametrize("shape", [(OUT, IN), (IN, OUT)])
def test_a_correction_is_the_best_of_its_rank(shape: tuple[int, int]) -> None:
    error = RNG.standard_normal(shape).astype(np.float32)
    x = inputs_of_a_layer(shape[1])
    covariance = np.cov(x.T, bias=True)
    whitened = np.linalg.cholesky(covariance + 1e-9 * np.eye(shape[1]))
    singular = np.linalg.svd(error @ whitened, compute_uv=False)
    for rank in (1, 8):
        made = correction(error, covariance, rank, damping=0.0)
        left = (error - (made.first @ made.second).T) @ whitened
        assert made.first.shape == (shape[1], rank)
        assert np.square(left).sum() == pytest.approx(np.square(singular[rank:]).sum(), rel=1e-3)
    whole = correction(error, covariance, 1000, damping=0.0)
    np.testing.assert_allclose((whole.first @ whole.second).T, error, atol=1e-3)


def model_of(weights: list[np.ndarray], folder: Path, *, bias: bool = False) -> Path:
    """Layers one after the other, with what the first one reads added to the last: float32 ``[rows, width]``."""
    nodes, initializers, last = [], [], "x"
    for number, weight in enumerate(weights):
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), f"w{number}"))
        if bias:
            initializers.append(
                numpy_helper.from_array(np.linspace(-1, 1, len(weight), dtype=np.float32), f"b{number}")
            )
            nodes.append(
                helper.make_node("Gemm", [last, f"w{number}", f"b{number}"], [f"y{number}"], name=f"layer{number}")
            )
        else:
            nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"y{number}"], name=f"layer{number}"))
        nodes.append(helper.make_node("Tanh", [f"y{number}"], [f"t{number}"], name=f"tanh{number}"))
        last = f"t{number}"
    nodes.append(helper.make_node("Add", [last, "x"], ["out"], name="skip"))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", IN])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["rows", IN])],
        initializers,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "model.onnx"
    ir.save(ir.serde.deserialize_model(model), path, external_data="model.onnx_data")
    return path


def layers() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [(rng.standard_normal((IN, IN)) / 8).astype(np.float32) for _ in range(4)]


def run(path: Path, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = open_session(path).run(["out"], {"x": x})[0]
    return found


def test_segments_measure_what_the_whole_does(tmp_path: Path) -> None:
    path = model_of(layers(), tmp_path)
    batches = [{"x": X[:300]}, {"x": X[300:]}]
    once = list(measure_moments(path, SlotTable(), batches, open_session))
    each = list(measure_moments(path, SlotTable(), batches, open_session, budget=1))
    assert len(once) == 1
    assert [list(part) for part in each] == [["x"], ["t0"], ["t1"], ["t2"]]
    for part in each:
        for name, moments in part.items():
            np.testing.assert_allclose(moments.covariance, once[0][name].covariance, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(moments.mean, once[0][name].mean, rtol=1e-4, atol=1e-5)
            assert moments.rows == ROWS
    assert not (tmp_path / "model_segment.onnx").exists()


def test_a_huge_token_does_not_outweigh_the_others(tmp_path: Path) -> None:
    path = model_of(layers(), tmp_path)
    loud = X.copy()
    loud[0] *= 1000
    (quiet,) = measure_moments(path, SlotTable(), [{"x": X}], open_session)
    (after,) = measure_moments(path, SlotTable(), [{"x": loud}], open_session)
    ratio = np.trace(after["x"].covariance) / np.trace(quiet["x"].covariance)
    assert np.trace(np.cov(loud.T)) / np.trace(np.cov(X.T)) > 1000
    assert ratio < 20  # the token counts about as much as all others together, not a thousand times as much
    assert np.isfinite(after["x"].mean).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heal", [0, 8])
def test_a_fitted_graph(bias: bool, heal: int, tmp_path: Path) -> None:
    weights = layers()
    path = model_of(weights, tmp_path, bias=bias)
    expected = run(path, X)
    target = tmp_path / "model_q4.onnx"
    calibrated(path, target, SlotTable(), batches=[{"x": X}], open_session=open_session, heal=heal)
    model = ir.load(target)
    assert sum(node.op_type == "MatMulNBits" for node in model.graph) == 4
    assert count_quantized(model, SlotTable()).share > 0.97  # of the rest, all are biases
    SetAccuracyLevel(0)(model)
    ir.save(model, target, external_data="model_q4.onnx_data")
    error = np.square(run(target, X) - expected).mean()
    (tmp_path / "rtn").mkdir()
    plain = model_of([round_to_blocks(weight) for weight in weights], tmp_path / "rtn", bias=bias)
    assert error < 0.5 * np.square(run(plain, X) - expected).mean()
    if heal:
        bare = tmp_path / "bare_q4.onnx"
        calibrated(path, bare, SlotTable(), batches=[{"x": X}], open_session=open_session)
        assert error < np.square(run(bare, X) - expected).mean()


@pytest.mark.parametrize("bits", [4, 8])
def test_fitted_weights_are_unpacked_for_browsers(bits: int, tmp_path: Path) -> None:
    """Zero points of three blocks fill a byte and a half, and there is a bias: both were left packed once."""
    path = model_of(layers(), tmp_path, bias=True)
    target = tmp_path / "model_q4.onnx"
    calibrated(path, target, SlotTable(), batches=[{"x": X}], open_session=open_session, bits=bits, heal=2)
    model = ir.load(target)
    SetAccuracyLevel(0)(model)
    ir.save(model, target, external_data="model_q4.onnx_data")
    expected = run(target, X)
    assert UnpackInt4()(model).modified
    assert not [node for node in model.graph.all_nodes() if node.op_type == "MatMulNBits"]
    unpacked = tmp_path / "unpacked.onnx"
    ir.save(model, unpacked)
    np.testing.assert_allclose(run(unpacked, X), expected, atol=2e-5)


def test_scales_are_stored_in_float16_and_cost_a_run_nothing(tmp_path: Path) -> None:
    """What runs is what the file holds, and ONNX Runtime widens the scales when it opens the graph. Tiny weights keep float32."""
    weights = layers()
    weights[1] *= np.float32(1e-6)
    path, target = model_of(weights, tmp_path), tmp_path / "model_q4.onnx"
    calibrated(path, target, SlotTable(), batches=[{"x": X}], open_session=open_session)
    model = ir.load(target)
    held = {
        name: value.const_value for name, value in model.graph.initializers.items() if value.const_value is not None
    }
    types = [held[f"w{number}_scales"].dtype for number in range(4)]
    assert types == [ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.FLOAT16]
    assert count_quantized(model, SlotTable()).share == 1.0, "scales are no weights"
    (tmp_path / "read").mkdir()
    numbers = [blocks.read() for _, blocks in sorted(quantized_weights(model).items())]
    biases = [held[f"w{number}/added_bias"].numpy().copy() for number in range(4)]
    plain = ir.load(model_of(numbers, tmp_path / "read", bias=True))
    for number, bias in enumerate(biases):
        plain.graph.initializers[f"b{number}"].const_value = ir.tensor(bias)
    ir.save(plain, tmp_path / "read" / "plain.onnx")
    model = ir.load(target)
    SetAccuracyLevel(0)(model)
    ir.save(model, target, external_data="model_q4.onnx_data")
    np.testing.assert_allclose(run(target, X), run(tmp_path / "read" / "plain.onnx", X), atol=2e-5)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph]
    assert kinds.count("MatMulNBits") == 4
    assert "Cast" not in kinds


def test_rounding_scales_costs_next_to_nothing() -> None:
    whole = nearest(W, 4).numbers() - W
    halves = nearest(W, 4, half=True)
    assert halves.grid.scales.dtype == np.float16
    # Numbers are chosen after the scales were rounded: a thousandth of the error, not half a thousandth of each number.
    assert np.square(halves.numbers() - W).sum() < 1.002 * np.square(whole).sum()


def test_zeros_have_a_scale_in_float16() -> None:
    weight = W.copy()
    weight[3, :32] = 0
    assert half_scales(weight, 4, 32)
    assert (nearest(weight, 4, half=True).numbers()[3, :32] == 0).all()
    assert (gptq(weight, Hessian.of(COVARIANCE), bits=4, block=32).grid.scales > 0).all()
    assert not half_scales(weight * np.float32(1e-7), 4, 32)
    assert not half_scales(weight * np.float32(1e8), 4, 32)


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    weights = layers()
    weights[2][3, 4] = np.inf
    path = model_of(weights, tmp_path)
    with pytest.raises(
        BundleError, match=r"(weight w2 .*not finite|activation t2 .*not finite.* Weight w2 of the checkpoint)"
    ):
        calibrated(path, tmp_path / "q.onnx", SlotTable(), batches=[{"x": X}], open_session=open_session)
    path = model_of(layers(), tmp_path)
    with pytest.raises(
        BundleError, match=r"activation x .*not finite on the calibration texts: .* All weights are finite"
    ):
        calibrated(path, tmp_path / "q.onnx", SlotTable(), batches=[{"x": X * np.nan}], open_session=open_session)


def test_blocks_are_laid_out_as_the_kernel_reads_them() -> None:
    blocks = Blocks(
        Grid(4, 32, np.ones((2, 3), np.float32), np.full((2, 3), 9, np.uint8)), np.full((2, 96), 3, np.uint8)
    )
    assert blocks.packed().shape == (2, 3, 16)
    zeros = blocks.packed_zeros()
    assert zeros is not None
    assert zeros.tolist() == [[0x99, 0x09]] * 2
