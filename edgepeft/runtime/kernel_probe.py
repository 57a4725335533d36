"""Whether the kernels' norms have the bits of this ONNX Runtime's own, so that a base with slots computes what it does without."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.protobuf import block, number
from ..errors import BundleError
from .twin import DOMAIN, VERSION
from .twin_joins import NORMS, SKIP_LAYER_NORM

#: Widths of rows: with and without a rest behind vectors of any size.
_WIDTHS = (64, 576, 999, 2048)
_ROWS = 5
_EPSILON = np.float32(1e-5)
_FLOAT, _UINT8, _INT64 = 1, 2, 7  # of TensorProto.DataType
_OUTPUTS = ["theirs", "their_sum", "ours", "our_sum"]


@cache
def norms_that_agree(library: Path, open_session: Callable[..., Any]) -> frozenset[str]:
    """Run ``AdapterSkipNorm`` and ONNX Runtime's own norms on the same numbers, once for a library.

    Args:
        library: The kernels.
        open_session: :func:`~edgepeft.runtime.sessions.open_session`.

    Returns:
        The operators, of :data:`~.twin_joins.NORMS`, whose sums and norms are the same, bit for bit, at every width that was tried.
    """
    return frozenset(op for op in NORMS if _agrees(op, library, open_session))


def _agrees(op: str, library: Path, open_session: Callable[..., Any]) -> bool:
    parameters = ("gamma", "beta", "bias") if op == SKIP_LAYER_NORM else ("gamma",)
    try:
        session = open_session(_graph(op, parameters), threads=1, operators=library)
    except BundleError:  # an ONNX Runtime without that node, or a library without this one
        return False
    rng = np.random.default_rng(0)
    for width in _WIDTHS:
        fed = {
            "y": rng.standard_normal((1, _ROWS, width), np.float32) * np.float32(3),
            "skip": rng.standard_normal((1, _ROWS, width), np.float32) * np.float32(40),
            "x": np.zeros((1, _ROWS, 4), np.float32),
            "adapter": np.zeros((1, 0), np.uint8),
            "rows": np.zeros(0, np.int64),
            **{name: rng.standard_normal(width, np.float32) for name in parameters},
        }
        theirs, their_sum, ours, our_sum = session.run(_OUTPUTS, fed)
        if theirs.tobytes() != ours.tobytes() or their_sum.tobytes() != our_sum.tobytes():
            return False
    return True


def _graph(op: str, parameters: tuple[str, ...]) -> bytes:
    """Both nodes over the same inputs. Field numbers are those of ``onnx.proto``."""
    epsilon = block(5, [block(1, "epsilon"), b"\x15" + _EPSILON.tobytes(), number(20, 1)])
    centered = block(5, [block(1, "centered"), number(3, int(op == SKIP_LAYER_NORM)), number(20, 2)])
    theirs = _node(op, "com.microsoft", ("y", "skip", *parameters), ("theirs", "", "", "their_sum"), epsilon)
    inputs = ("y", "x", "adapter", "rows", "skip", *parameters)
    ours = _node("AdapterSkipNorm", DOMAIN, inputs, ("ours", "our_sum"), epsilon + centered)
    kinds = {"adapter": (_UINT8, 2), "rows": (_INT64, 1), **dict.fromkeys(parameters, (_FLOAT, 1))}
    graph = [
        block(1, theirs),
        block(1, ours),
        block(2, "norms"),
        *(block(11, _value(name, *kinds.get(name, (_FLOAT, 3)))) for name in inputs),
        *(block(12, _value(name, _FLOAT, 3)) for name in _OUTPUTS),
    ]
    opsets = [[number(2, 20)], [block(1, "com.microsoft"), number(2, 1)], [block(1, DOMAIN), number(2, VERSION)]]
    return b"".join([number(1, 10), block(7, graph), *(block(8, opset) for opset in opsets)])


def _node(op: str, domain: str, inputs: tuple[str, ...], outputs: tuple[str, ...], attributes: bytes) -> list[bytes]:
    return [
        *(block(1, name) for name in inputs), *(block(2, name) for name in outputs), block(3, op), block(4, op), attributes,
        block(7, domain),
    ]  # fmt: skip


def _value(name: str, kind: int, rank: int) -> list[bytes]:
    """A value of any shape of so many dimensions."""
    shape = [block(1, [block(2, f"{name}{axis}")]) for axis in range(rank)]
    return [block(1, name), block(2, [block(1, [number(1, kind), block(2, shape)])])]
