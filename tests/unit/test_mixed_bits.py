"""Bits by what each matrix is worth: the front, sizes and losses within a goal, and the forms that a matrix may take."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from edgepeft.quantize.calibrated import nearest_in
from edgepeft.quantize.mixed import MEASURED, Option, front, hull, options_of, within_loss, within_size
from edgepeft.quantize.nbits import Packed
from edgepeft.quantize.packing import Form
from edgepeft.quantize.weights import Matrix


def choices(seed: int = 0) -> dict[str, list[Option]]:
    rng = np.random.default_rng(seed)
    sizes, losses = [10, 12, 15, 30], [1.0, 0.7, 0.5, 0.001]
    return {
        f"m{i}": [
            Option(Form(4 + k, 32), int(size * scale), float(loss * worth))
            for k, (size, loss) in enumerate(zip(sizes, losses, strict=True))
        ]
        for i, (scale, worth) in enumerate(zip(rng.integers(1, 9, 5), rng.random(5) ** 3, strict=True))
    }


def everything(options: dict[str, list[Option]]) -> list[tuple[int, float]]:
    return [(sum(o.bytes for o in each), sum(o.loss for o in each)) for each in itertools.product(*options.values())]


@pytest.mark.parametrize("seed", range(4))
def test_no_choice_is_better_than_a_point_of_the_front(seed: int) -> None:
    options = choices(seed)
    points = front(options)
    assert [p.bytes for p in points] == sorted({p.bytes for p in points})
    assert points[0].bytes == min(size for size, _ in everything(options))
    for point in points:
        best = min(loss for size, loss in everything(options) if size <= point.bytes)
        assert point.loss == pytest.approx(best, abs=1e-12)
        by_name = {name: next(o for o in each if o.form == point.forms[name]) for name, each in options.items()}
        assert point.bytes == sum(o.bytes for o in by_name.values())
        assert point.loss == pytest.approx(sum(o.loss for o in by_name.values()), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_size_is_kept_and_used(seed: int) -> None:
    options = choices(seed)
    points = front(options)
    for size in range(points[0].bytes, points[-1].bytes + 1):
        found = within_size(options, size)
        assert found is not None
        assert found.bytes <= size
        # Never worse than the front's own last point of that size: what does not fit is passed over, and others go on.
        assert found.loss <= next(p.loss for p in reversed(points) if p.bytes <= size) + 1e-12
    assert within_size(options, points[0].bytes - 1) is None


def test_one_large_matrix_does_not_keep_the_others_from_their_bits() -> None:
    small, large = Form(4), Form(8)
    options = {
        "head": [Option(small, 100, 1.0), Option(large, 200, 0.0)],  # 0.01 a byte
        "layer": [Option(small, 10, 0.05), Option(large, 20, 0.0)],  # 0.005 a byte
    }
    found = within_size(options, 120)
    assert found is not None
    assert found.forms == {"head": small, "layer": large}
    assert (found.bytes, found.loss) == (120, 1.0)


def test_a_loss_is_kept_and_a_floor_counts() -> None:
    options = choices()
    points = front(options, floor=0.1)
    assert min(p.loss for p in points) >= 0.1
    wanted = points[3].loss
    found = within_loss(points, wanted)
    assert found is not None
    assert (found.loss, found.bytes) == (points[3].loss, points[3].bytes)
    assert within_loss(points, 0.0999) is None
    size = within_size(options, points[3].bytes, floor=0.1)
    assert size is not None
    assert size.loss == pytest.approx(points[3].loss)


def test_what_is_above_the_hull_is_left_out() -> None:
    straight = [Option(Form(4), 10, 1.0), Option(Form(5), 20, 0.9), Option(Form(8), 30, 0.0)]
    assert [o.bytes for o in hull(straight)] == [10, 30]
    worse = [Option(Form(4), 10, 1.0), Option(Form(5), 20, 1.5), Option(Form(8), 30, 0.5)]
    assert [o.bytes for o in hull(worse)] == [10, 30]


def matrix(rows: int, columns: int, *, table: bool = False) -> Matrix:
    array = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    value = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
    node = ir.node("Gather" if table else "MatMul", [value])
    return Matrix(value, () if table else (node,), (node,) if table else (), transposed=True)


def test_forms_of_a_matrix() -> None:
    options = {o.form: o for o in options_of(matrix(64, 256), 0.02)}
    assert options[MEASURED].loss == pytest.approx(0.02)
    assert options[Form(4, 128)].loss > options[Form(4, 64)].loss > options[MEASURED].loss
    assert options[Form(8, 128)].loss < 0.02 / 100  # (15 / 255)^2, and larger blocks
    for form, option in options.items():
        packed = Packed.of(nearest_in(np.zeros((64, 256), np.float32), form))
        assert option.bytes == packed.bytes
    # Blocks of a table divide its width, and none is larger than the matrix.
    assert {o.form.block for o in options_of(matrix(200, 96, table=True), 0.02)} == {32}
    assert {o.form.block for o in options_of(matrix(200, 64), 0.02)} == {32, 64}
