"""Running arrays after the states that an adapter puts before the sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..bundle.cache_names import is_past, is_present
from ..errors import InputError

Arrays = Mapping[str, np.ndarray]


def after_prefix(
    run: Callable[[Arrays], dict[str, np.ndarray]], inputs: Arrays, states: Arrays, limit: int | None
) -> dict[str, np.ndarray]:
    """What ``run`` gives for ``inputs`` behind ``states``, ``[1, heads, length, head_dim]`` by cache input.

    Masks and positions are those of the sequence itself; what the states take of both is added here. A sequence that
    begins (its past holds nothing) begins with the states, one row after the other and without its padding, since
    attention over a packed cache continues one row at a time; padded positions come back as zeros. A later step's past
    holds them already. Raises :class:`InputError` for padding on the left and for more than ``limit`` places.
    """
    length = next(iter(states.values())).shape[2]
    mask = inputs["attention_mask"]
    past = next(array for name, array in inputs.items() if is_past(name))
    if limit is not None and length + mask.shape[1] > limit:
        raise InputError(
            f"{mask.shape[1]} tokens after the {length} states of this adapter are more than the context of {limit} tokens; "
            f"at most {limit - length} fit"
        )
    if past.shape[2]:
        return run(_shifted(inputs, length))
    counts = mask.sum(axis=1)
    if not np.array_equal(mask, np.arange(mask.shape[1]) < counts[:, None]) or not counts.all():
        raise InputError(
            "an adapter that puts states before the sequence needs rows of at least one token, padded on the right: masks of "
            "ones, then zeros"
        )
    rows = [_row(run, inputs, states, row, int(count)) for row, count in enumerate(counts)]
    return {name: np.concatenate([found[name] for found in rows]) for name in rows[0]}


def _shifted(inputs: Arrays, length: int) -> dict[str, np.ndarray]:
    mask = inputs["attention_mask"]
    found = {**inputs, "attention_mask": np.concatenate([np.ones((len(mask), length), mask.dtype), mask], axis=1)}
    if "position_ids" in inputs:
        found["position_ids"] = inputs["position_ids"] + length
    return found


def _row(
    run: Callable[[Arrays], dict[str, np.ndarray]], inputs: Arrays, states: Arrays, row: int, count: int
) -> dict[str, np.ndarray]:
    """One row's outputs, padded with zeros to the width of the batch."""
    width = inputs["input_ids"].shape[1]
    alone: dict[str, np.ndarray] = {}
    for name, array in inputs.items():
        if is_past(name):
            alone[name] = states[name]
        elif name == "logits_from":
            alone[name] = np.minimum(array, count - 1)
        else:
            alone[name] = array[row : row + 1, :count]
    found = run(_shifted(alone, next(iter(states.values())).shape[2]))
    missing = width - count
    for name, array in found.items():
        axis = 2 if is_present(name) else 1
        edges = [(0, 0)] * array.ndim
        edges[axis] = (0, missing)
        found[name] = np.pad(array, edges)
    if "logits_from" in inputs:  # a row that ends before it gives its last token's logits, which nobody asked for
        wanted = max(0, width - int(inputs["logits_from"][0]))
        found["logits"] = found["logits"][:, found["logits"].shape[1] - wanted :]
    return found
