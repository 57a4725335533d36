"""Adapter tensors in one buffer, aligned, in the order they are read."""

from __future__ import annotations

import numpy as np

from edgepeft.runtime.buffers import as_values, packed


def test_packed_in_order_at_cache_lines() -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in
               (("c", (1, 3, 5)), ("a", (1, 7, 2)), ("empty", (1, 4, 0)), ("b", (3,)))}  # fmt: skip
    found = packed(tensors, ["a", "missing", "b"])
    assert list(found) == ["a", "b", "c", "empty"]
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
    addresses = [array.ctypes.data for name, array in found.items() if name != "empty"]
    assert addresses == sorted(addresses)
    assert all(address % 64 == 0 for address in addresses)
    assert addresses[1] - addresses[0] == 64  # 56 bytes take a line


def test_values_are_the_same_memory_and_keep_it() -> None:
    values = as_values(packed({"a": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}, []))
    assert values["a"].data_ptr() % 64 == 0
    np.testing.assert_array_equal(values["a"].numpy(), np.arange(6, dtype=np.float32).reshape(1, 2, 3))
