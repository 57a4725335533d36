"""Attention over many tokens at once, which ONNX Runtime computes wrongly on some GPUs, found out by the first run of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .once import Once

#: From so many tokens on ONNX Runtime's WebGPU provider computes GroupQueryAttention in another way.
LONG = 32
_OPERATOR = "GroupQueryAttention"

Outputs = Mapping[str, np.ndarray]


def tolerance(half: bool) -> float:
    """By how much of their root mean square results may differ that are both right.

    Measured on tiny models and SmolLM2: 1e-6 in float32, up to 1e-2 in float16; attention that is wrong, 0.008 to 0.2.
    """
    return 3e-2 if half else 1e-3


def attention_nodes(session: Any) -> list[str]:
    """The names of a session's nodes of grouped-query attention."""
    parts = session.get_provider_graph_assignment_info()
    return [node.name for part in parts for node in part.get_nodes() if node.op_type == _OPERATOR]


def attention_on_cpu(nodes: list[str]) -> dict[str, str]:
    """Settings of a session that leave these nodes to the CPU."""
    return {"ep.webgpuexecutionprovider.forceCpuNodeNames": "\n".join(nodes)}


class LongAttention:
    """Which session runs arrays of many tokens: the GPU's, or one over the same graph whose attention the CPU computes.

    The first such run is made by both, and what it shows holds for the others. A sequence that is written token by token needs
    none of this: :func:`.generation.gpu_decoder.piece_size`.

    Args:
        reopen: Opens the graph with further settings.
        half: Whether it computes in float16.
    """

    def __init__(self, reopen: Callable[[Mapping[str, str]], Any], half: bool) -> None:
        self._reopen = reopen
        self._tolerance = tolerance(half)
        #: Whether the GPU computes it rightly; ``None`` until it is known.
        self.right: bool | None = None
        self._exact: Once[Any] | None = None

    def forget(self) -> None:
        """Give up the second session; a run that needs it opens it again."""
        self._exact = None

    def run(self, session: Any, tokens: int, run: Callable[[Any], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What ``run`` gives with the session that computes this many tokens rightly."""
        if tokens < LONG or self.right:
            return run(session)
        nodes = attention_nodes(session)
        if not nodes:
            self.right = True
            return run(session)
        exact = self._exact
        if exact is None:
            exact = self._exact = Once(lambda: self._reopen(attention_on_cpu(nodes)))
        found = run(exact.get())
        if self.right is None:
            here = run(session)
            self.right = all(distance(here[name], found[name]) <= self._tolerance for name in found)
            if self.right:
                self._exact = None
        return found


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The root mean square of a difference, as a share of the other's; NaN where one is not finite."""
    a, b = (np.asarray(array, np.float64) for array in (one, other))
    return float(np.sqrt(np.mean(np.square(a - b)) / max(float(np.mean(np.square(b))), 1e-30)))
