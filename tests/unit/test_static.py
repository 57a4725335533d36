"""8-bit weights with 16-bit activations: the rounding, the ranges; and lookups of everything as a reshape."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepeft.graph.passes.decompose_fused import ReshapeWholeGathers
from edgepeft.quantize.w8a16 import MARGIN, TOP, WEIGHT_TOP, quantize_symmetric, scale_of


@given(st.integers(1, 6), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_weights_use_all_of_eight_bits(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((rows, columns)) * rng.standard_exponential((rows, 1)) ** 3).astype("f4")
    quantized, scales = quantize_symmetric(weight)
    assert quantized.dtype == np.int8
    # Half a unit, and what float32 loses on the way.
    assert np.all(np.abs(quantized * scales[:, None] - weight) <= scales[:, None] * 0.5001)
    assert np.all(np.abs(quantized.astype(int)).max(1) == WEIGHT_TOP)


def test_a_channel_of_zeros_stays_one() -> None:
    quantized, scales = quantize_symmetric(np.array([[0, 0], [1e-38, 0]], np.float32))
    assert quantized[0].tolist() == [0, 0]
    assert np.all(scales > 0), "providers divide by scales"


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_a_range_and_its_margin_fit(one: float, two: float) -> None:
    low, high = sorted((one, two))
    scale, zero = scale_of(low, high)
    assert (scale.dtype, zero.dtype) == (np.float32, np.uint16)
    ends = np.array([min(low, 0.0), 0.0, max(high, 0.0)]) * MARGIN
    quantized = np.rint(ends / scale) + zero.astype(float)
    assert np.all((quantized >= -1) & (quantized <= TOP + 1)), "at most one step beyond, by rounding of the scale"
    assert (np.clip(quantized, 0, TOP) - zero)[1] == 0, "zero is exact"


def looked_up(shape: tuple[int, ...], places: np.ndarray, **attributes: int) -> ir.Model:
    data = ir.Value(name="data", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    indices = ir.Value(name="places", const_value=ir.tensor(places), type=ir.TensorType(ir.DataType.INT64))
    node = ir.node("GatherND", [data, indices], attributes, name="mask")
    node.outputs[0].name = "found"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([data], node.outputs, nodes=[node], initializers=[indices], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, data: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["found"], {"data": data})[0]
    return found


WHOLE = np.stack(np.meshgrid(np.arange(2), np.arange(3), indexing="ij"), -1)


@pytest.mark.parametrize(
    ("places", "attributes", "plain"),
    [
        (WHOLE, {}, True),
        (WHOLE.reshape(2, 1, 1, 3, 2), {}, True),
        (WHOLE[::-1].copy(), {}, False),
        (WHOLE[:1], {}, False),
        (np.concatenate([WHOLE, WHOLE]), {}, False),
        (WHOLE - 1, {}, False),  # counts from the end
        (np.array([[0], [1]]), {}, False),  # rows, not numbers
        (np.array([[0], [1]]), {"batch_dims": 1}, False),
    ],
)
def test_only_a_lookup_of_everything_in_order_is_a_reshape(
    places: np.ndarray, attributes: dict[str, int], plain: bool
) -> None:
    model, data = looked_up((2, 3), places.astype(np.int64), **attributes), np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = run(model, data)
    assert ReshapeWholeGathers()(model).modified == plain
    assert [node.op_type for node in model.graph] == ["Reshape" if plain else "GatherND"]
    np.testing.assert_array_equal(run(model, data), expected)
    assert expected.shape == run(model, data).shape
