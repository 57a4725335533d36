"""Which form each matrix gets: the smallest model within a loss, or the least loss within a size.

Every matrix may take one of a few forms, each with its bytes and a predicted divergence. From the smallest form on, steps to a
larger one are taken in the order of divergence saved for each byte, along the lower convex hull of each matrix's forms: what is
passed on the way is the front of Lagrange's relaxation (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of
quantizers", IEEE Transactions on Acoustics, Speech and Signal Processing 36(9), 1988).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .calibrated import nearest
from .grids import half_scales
from .packing import Form
from .stored_grid import stored_grid
from .weights import Matrix

#: The form by which sensitivities are measured, and those that a matrix may take.
MEASURED = Form(4, 32)
FORMS = (Form(4, 128), Form(4, 64), MEASURED, Form(8, 128), Form(8, 64), Form(8, 32))
#: The form of a matrix that lies on a grid of 4 bits but for its zero.
OFFSET = Form(4, 32, offsets=True)
#: At most what the four nodes of offsets take in the graph's file: bytes, and how often they say the layer's name.
_NODES, _NAMES = 500, 14
#: Rows of a matrix by which the error of one form is compared with another's.
ROWS = 128


@dataclass(frozen=True)
class Option:
    """One form of a matrix: its bytes in the file, and the divergence that is expected of it, in nats."""

    form: Form
    bytes: int
    loss: float


@dataclass(frozen=True)
class Point:
    """A model on the front: bytes of its matrices, the divergence expected of them together, and the form of each."""

    bytes: int
    loss: float
    forms: Mapping[str, Form]


def forms_of(matrix: Matrix) -> list[Form]:
    """The forms that a matrix of its shape may take, those of a grid that it lies on apart."""
    columns = matrix.shape[1]
    return [
        form
        for form in FORMS
        if not (matrix.tables and columns % form.block) and (form.block <= columns or form == MEASURED)
    ]


def options_of(matrix: Matrix, loss: float) -> tuple[Option, ...]:
    """The forms that a matrix may take.

    Args:
        matrix: The matrix. The blocks of a table divide its width.
        loss: Its measured divergence in the form ``MEASURED``.

    Returns:
        One for each form; losses in proportion to the squared error of rounding to the nearest. A matrix that lies on the grid of
        ``MEASURED`` has that alone, and one that lies on it but for its zero has ``OFFSET`` too, at no loss.
    """
    weight = matrix.finite()
    rows, columns = weight.shape
    stored = stored_grid(weight, MEASURED)
    if stored is not None and stored.offsets is None:
        wide = 0 if stored.blocks.grid.scales.dtype == np.float16 else 2 * rows * stored.blocks.grid.scales.shape[1]
        return (Option(MEASURED, MEASURED.bytes(rows, columns) + wide, loss),)
    sample = weight[np.unique(np.linspace(0, rows - 1, ROWS).astype(int))].astype(np.float32)
    errors = {
        form: float(np.square(sample - nearest(sample, form.bits, form.block).numbers()).sum())
        for form in forms_of(matrix)
    }
    measured = errors[MEASURED] or 1.0
    # A matrix whose scales float16 cannot hold has them in float32.
    more = {
        form: 0 if half_scales(weight, form.bits, form.block) else 2 * rows * -(-columns // form.block)
        for form in errors
    }
    found = [
        Option(form, form.bytes(rows, columns) + more[form], loss * error / measured) for form, error in errors.items()
    ]
    if stored is not None and not matrix.tables:
        nodes = sum(_NODES + _NAMES * len(node.name or "") for node in matrix.linear)
        found.append(Option(OFFSET, OFFSET.bytes(rows, columns) + more[MEASURED] + nodes, 0.0))
    return tuple(found)


def front(options: Mapping[str, Sequence[Option]], floor: float = 0.0) -> list[Point]:
    """All models on the front, the smallest first. ``floor`` is a divergence that all of them have."""
    hulls = {name: hull(each) for name, each in options.items()}
    forms = {name: each[0].form for name, each in hulls.items()}
    size, loss = (sum(getattr(each[0], what) for each in hulls.values()) for what in ("bytes", "loss"))
    points = [Point(size, floor + loss, dict(forms))]
    for _, name, before, after in sorted(_steps(hulls), key=lambda step: -step[0]):
        forms[name] = after.form
        size += after.bytes - before.bytes
        loss += after.loss - before.loss
        points.append(Point(size, floor + max(0.0, loss), dict(forms)))
    return points


def _steps(hulls: Mapping[str, Sequence[Option]]) -> Iterator[tuple[float, str, Option, Option]]:
    for name, each in hulls.items():
        for before, after in pairwise(each):
            yield (before.loss - after.loss) / (after.bytes - before.bytes), name, before, after


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of loss over bytes, the smallest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (each.bytes, each.loss)):
        if kept and option.loss >= kept[-1].loss:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-2], option):
            kept.pop()
        kept.append(option)
    return kept


def _slope(one: Option, two: Option) -> float:
    return (two.loss - one.loss) / (two.bytes - one.bytes)


def within_size(options: Mapping[str, Sequence[Option]], size: int, floor: float = 0.0) -> Point | None:
    """The least loss in at most ``size`` bytes: steps in the front's order, those that no longer fit left out.

    ``None`` where the smallest model is larger.
    """
    point = front(options, floor)[0]
    if point.bytes > size:
        return None
    forms, total, loss = dict(point.forms), point.bytes, point.loss
    hulls = {name: hull(each) for name, each in options.items()}
    full: set[str] = set()
    for _, name, before, after in sorted(_steps(hulls), key=lambda step: -step[0]):
        if name in full or total + after.bytes - before.bytes > size:
            full.add(name)
            continue
        forms[name] = after.form
        total += after.bytes - before.bytes
        loss += after.loss - before.loss
    return Point(total, max(floor, loss), forms)


def within_loss(points: Sequence[Point], loss: float) -> Point | None:
    """The first point of at most that expected divergence; ``None`` where the largest has more."""
    return next((point for point in points if point.loss <= loss), None)
