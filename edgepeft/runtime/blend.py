"""Blends: weighted sums of adapters, exact, by setting their factors side by side. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..bundle import AdapterEntry, Bundle, Head, OverrideSlot, OwnEmbedding, head_of
from ..errors import InputError
from .active import check_linear, read_tensors


@dataclass(frozen=True)
class Blend:
    """Slot tensors of a weighted sum, the rank it has in each slot, and what its head's outputs mean."""

    tensors: dict[str, np.ndarray]
    ranks: dict[str, int]
    head: Head
    #: How texts are embedded with it; ``None``: as the base does.
    embedding: OwnEmbedding | None
    #: Whether rows of a batch may differ in it, and the largest SVD residual among its adapters (``None``: all exact).
    per_row: bool
    residual: float | None
    #: The adapter whose tokenizer, template and end tokens count.
    text: str


def describe(weights: Mapping[str, float]) -> str:
    """A blend as its call says it: ``a=0.7, b=0.3``."""
    return ", ".join(f"{name}={weight:g}" for name, weight in weights.items())


def blend(
    bundle: Bundle,
    weights: Mapping[str, float],
    *,
    scale: float = 1.0,
    head: str | None = None,
    read: Callable[[str], Mapping[str, np.ndarray]] | None = None,
) -> Blend:
    """The sum of the adapters' changes, each times its weight and ``scale``: ``W + Σ w_i A_i B_i`` at every site.

    A's stand side by side along the rank, B's below each other with the weights folded in, so the sum is exact and the
    graph does not change. Weights may be negative. Parameters that the adapters replace (heads, biases, norms) must be
    equal in all of them, or are taken from the adapter ``head``. ``read`` gives an adapter's tensors by name; without it they
    are read from its file. Raises :class:`InputError` for weights that are not
    finite, for adapters with gains, and for replaced parameters that differ; :class:`UnknownAdapterError` for a name.
    """
    entries = _check(bundle, weights, scale, head)
    loaded = {
        name: read_tensors(bundle, name, entry) if read is None else read(name) for name, entry in entries.items()
    }
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for slot in bundle.manifest.slots.factored:
        inside = [name for name in weights if slot.b in loaded[name] and weights[name] != 0.0]
        if inside:
            a_axis, b_axis = slot.rank_axes
            tensors[slot.a] = np.concatenate([loaded[name][slot.a] for name in inside], axis=a_axis)
            tensors[slot.b] = np.concatenate(
                [loaded[name][slot.b] * np.float32(scale * weights[name]) for name in inside], axis=b_axis
            )
            ranks[slot.name] = int(tensors[slot.b].shape[b_axis])
    for override in bundle.manifest.slots.overrides:
        taken = _override(override, loaded, head)
        if taken is not None:
            tensors[override.tensor] = taken
    residuals = [entry.residual for entry in entries.values() if entry.residual is not None]
    return Blend(
        tensors=tensors,
        ranks=ranks,
        head=_head(bundle, entries, head),
        embedding=_embedding(bundle, entries, head),
        per_row=all(entry.per_row for entry in entries.values()),
        residual=max(residuals, default=None),
        text=head if head is not None else text_of_blend(weights),
    )


def text_of_blend(weights: Mapping[str, float]) -> str:
    """The adapter whose text a blend without a head has: the one with the largest share, the first of equal ones."""
    return max(weights, key=lambda name: abs(weights[name]))


def _check(bundle: Bundle, weights: Mapping[str, float], scale: float, head: str | None) -> dict[str, AdapterEntry]:
    if not weights:
        raise InputError("a blend needs at least one adapter with a weight, for example a=0.7 b=0.3")
    if not math.isfinite(scale):
        raise InputError(f"scale must be a finite number, found {scale}")
    entries = {name: bundle.adapter(name) for name in weights}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise InputError(f"the weight of adapter {name!r} must be a finite number, found {weight!r}")
        check_linear(name, entries[name], "blended")
    tasks = {name: head_of(bundle.manifest, name).task for name in weights}
    if len(set(tasks.values())) > 1:
        said = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        raise InputError(f"adapters of different tasks have no blend ({said})")
    if head is not None and head not in weights:
        raise InputError(f"head {head!r} is not among the adapters of the blend: {', '.join(weights)}")
    return entries


def _override(
    slot: OverrideSlot, loaded: Mapping[str, Mapping[str, np.ndarray]], head: str | None
) -> np.ndarray | None:
    """What a blend puts into a slot that replaces a parameter; ``None`` leaves the base's own."""
    if head is not None:
        return loaded[head].get(slot.tensor)
    found = {name: tensors.get(slot.tensor) for name, tensors in loaded.items()}
    first_name, first = next(iter(found.items()))
    for name, other in found.items():
        same = first is other or (first is not None and other is not None and np.array_equal(first, other))
        if not same:
            raise InputError(
                f"adapters {first_name!r} and {name!r} replace {slot.parameter} differently, and a parameter that is replaced "
                f"has no weighted sum. Say whose to take, for example --head {first_name} (in Python head={first_name!r})."
            )
    return first


def _head(bundle: Bundle, entries: Mapping[str, AdapterEntry], chosen: str | None) -> Head:
    """The head that a blend runs with: the chosen adapter's, else the first that has labels of its own."""
    named = chosen or next((name for name, entry in entries.items() if entry.labels is not None), None)
    return head_of(bundle.manifest, named or next(iter(entries)))


def _embedding(bundle: Bundle, entries: Mapping[str, AdapterEntry], chosen: str | None) -> OwnEmbedding | None:
    """How a blend embeds texts: as the chosen adapter does, else as all of them do."""
    if chosen is not None:
        return bundle.embedding_of(chosen)
    ways = {name: bundle.embedding_of(name) for name in entries}
    first_name, first = next(iter(ways.items()))
    for name, other in ways.items():
        if other is not None and first is not None and not first.same(other):
            raise InputError(
                f"adapters {first_name!r} and {name!r} embed texts differently (pooling, prompts or limits), which has no "
                f"weighted sum. Say whose way to take, for example --head {first_name} (in Python head={first_name!r})."
            )
    return first
