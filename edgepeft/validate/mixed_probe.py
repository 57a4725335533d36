"""Batches whose rows have adapters of their own: each row is what PEFT gives for its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..runtime import Runtime
from .probe import Arrays, BatchProbe, CausalProbe, Found, Probe


class _Mixed:
    """Runs each batch with an adapter for each row."""

    def __init__(self, runtime: Runtime, adapters: Sequence[str]) -> None:
        self._runtime = runtime
        self._adapters = adapters

    @property
    def decoder_shapes(self) -> Mapping[str, Sequence[int | str]]:
        return self._runtime.decoder_shapes

    def forward(self, inputs: Arrays) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))
        return self._runtime.forward(
            inputs, adapters=[self._adapters[row % len(self._adapters)] for row in range(rows)]
        )

    def decode(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return self._runtime.decode(inputs)


def mixed_differences(runtime: Runtime, expected: Mapping[str, Found], probe: Probe) -> dict[tuple[str, str], float]:
    """max |difference| from PEFT of batches whose rows alternate between two adapters, by the names of the two.

    Args:
        runtime: The bundle.
        expected: What PEFT computes for each adapter; its first batch is that of ``probe``.
        probe: What is run.

    Returns:
        Each adapter in one pair at least. Pairs that cannot share a batch are left out: those whose heads differ in width, that
        begin sequences, or of which one replaces what the other keeps.
    """
    first = probe.brief()
    if not isinstance(first, (BatchProbe, CausalProbe)) or runtime.manifest.mode != "swap":
        return {}
    entries = runtime.manifest.adapters
    groups: dict[Any, list[str]] = {}
    for name, found in expected.items():
        if entries[name].per_row and not entries[name].prefix_length:
            shapes = tuple((output, array.shape) for output, array in found[0].items())
            groups.setdefault(shapes, []).append(name)
    worst: dict[tuple[str, str], float] = {}
    for names in groups.values():
        if len(names) == 1:
            continue
        for pair in zip(names[::2], (*names[1::2], names[0]), strict=False):
            try:
                mine = first.run(_Mixed(runtime, pair))
            except InputError:
                continue  # said by name to whoever asks for it
            theirs = [
                {
                    output: np.stack([expected[pair[row % 2]][0][output][row] for row in range(len(array))])
                    for output, array in mine[0].items()
                    if output in expected[pair[0]][0]
                }
            ]
            worst[pair] = first.difference(mine, theirs)
    return worst
