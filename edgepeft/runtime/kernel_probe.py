"""Whether the kernels' norms and gates have the bits of ONNX Runtime's own: a base with slots computes what it does without."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.protobuf import block, number
from ..errors import BundleError
from .twin import DOMAIN, VERSION
from .twin_joins import NORMS, SIGMOID, SILUS, SKIP_LAYER_NORM

#: Widths of rows: with and without a rest behind vectors of any size.
_WIDTHS = (64, 576, 999, 2048)
_ROWS = 5
_EPSILON = np.float32(1e-5)
_FLOAT, _UINT8, _INT64 = 1, 2, 7  # of TensorProto.DataType
_OUTPUTS = ["theirs", "their_sum", "ours", "our_sum"]
#: Where the logistic function ends, or is 0 or 1 in float32.
_FAR_GATES = np.array(
    [0, -0.0, 1e-30, -1e-30, 17.9, 18, 18.1, -18, -18.1, 86, -87.2, -87.4, -88, 89, -104, 3e38, -3e38]
)


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


@cache
def silus_that_agree(library: Path, open_session: Callable[..., Any]) -> frozenset[str]:
    """The same of ``AdapterSiluMul``: those of :data:`~.twin_joins.SILUS` whose results it has."""
    return frozenset(silu for silu in SILUS if _silu_agrees(silu, library, open_session))


def _silu_agrees(silu: str, library: Path, open_session: Callable[..., Any]) -> bool:
    try:
        session = open_session(_silu_graph(silu), threads=1, operators=library)
    except BundleError:  # an ONNX Runtime without that node, or a library without this one
        return False
    rng = np.random.default_rng(0)
    for width in _WIDTHS:
        gate, up = (rng.standard_normal((1, _ROWS, width), np.float32) * np.float32(size) for size in (6, 3))
        gate[0, :, -len(_FAR_GATES) :] = _FAR_GATES.astype(np.float32)
        fed = {
            "gate": gate,
            "same": gate,
            "up": up,
            "x": np.zeros((1, _ROWS, 4), np.float32),
            "adapter": np.zeros((1, 0), np.uint8),
            "rows": np.zeros(0, np.int64),
        }
        theirs, ours = session.run(["theirs", "ours"], fed)
        if theirs.tobytes() != ours.tobytes():
            return False
    return True


def _silu_graph(silu: str) -> bytes:
    """ONNX Runtime's nodes over ``gate``, ours over ``same``: nothing else reads what theirs begin with, as in a base."""
    if silu == SIGMOID:
        nodes = [_node(SIGMOID, "", ("gate",), ("s",), b""), _node("Mul", "", ("gate", "s"), ("a",), b"")]
    else:
        alpha = block(5, [block(1, "alpha"), b"\x15" + np.float32(1).tobytes(), number(20, 1)])
        nodes = [_node(silu, "com.microsoft", ("gate",), ("a",), alpha)]
    slots = block(5, [block(1, "slots"), number(8, 0), number(8, 1), number(20, 7)])
    kinds = {"adapter": (_UINT8, 2), "rows": (_INT64, 1)}
    nodes += [
        _node("Mul", "", ("a", "up"), ("theirs",), b""),
        _node("AdapterSiluMul", DOMAIN, ("x", "adapter", "rows", "same", "up"), ("ours",), slots),
    ]
    graph = [
        *(block(1, node) for node in nodes),
        block(2, "silus"),
        *(
            block(11, _value(name, *kinds.get(name, (_FLOAT, 3))))
            for name in ("gate", "same", "up", "x", "adapter", "rows")
        ),
        *(block(12, _value(name, _FLOAT, 3)) for name in ("theirs", "ours")),
    ]
    return _model(graph)


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
    return _model(graph)


def _model(graph: list[bytes]) -> bytes:
    opsets = [[number(2, 20)], [block(1, "com.microsoft"), number(2, 1)], [block(1, DOMAIN), number(2, VERSION)]]
    return b"".join([number(1, 10), block(7, graph), *(block(8, opset) for opset in opsets)])


def _node(op: str, domain: str, inputs: tuple[str, ...], outputs: tuple[str, ...], attributes: bytes) -> list[bytes]:
    return [
        *(block(1, name) for name in inputs), *(block(2, name) for name in outputs), block(3, f"{op}.{outputs[0]}"), block(4, op),
        attributes,
        block(7, domain),
    ]  # fmt: skip


def _value(name: str, kind: int, rank: int) -> list[bytes]:
    """A value of any shape of so many dimensions."""
    shape = [block(1, [block(2, f"{name}{axis}")]) for axis in range(rank)]
    return [block(1, name), block(2, [block(1, [number(1, kind), block(2, shape)])])]
