"""What looks wrong with adapters though each runs as it was trained: no change, twins, labels in another order, another base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np

from ..adapters.checkpoint import Source, read_checkpoint
from ..adapters.contract import same_source
from ..bundle import Bundle
from ..metrics import Scored
from ..metrics.intervals import wilson
from ..report.accuracy import chosen_labels
from ..runtime import Runtime
from .probe import Found, Probe, same_outputs

#: Labels look permuted where another order of them gives at least so much more accuracy, with intervals that do not meet.
PERMUTED_GAIN = 0.2
#: Orders of more labels than this are searched pair by pair.
_ALL_ORDERS = 6


def adapter_outputs(runtime: Runtime, probe: Probe, names: Sequence[str]) -> dict[str, Found]:
    """What each adapter computes on one batch."""
    probe = probe.brief()
    return {name: probe.run(runtime.adapter(name)) for name in names}


def unchanged(runtime: Runtime, probe: Probe, outputs: Mapping[str, Found]) -> tuple[str, ...]:
    """The adapters whose outputs are the base's, bit for bit."""
    probe = probe.brief()
    base: dict[str, Found] = {}
    found = []
    for name, mine in outputs.items():
        task = runtime.adapter(name).task
        if task not in base:
            base[task] = probe.run(runtime.adapter(None, task=task))
        if _same(mine, base[task]):
            found.append(name)
    return tuple(found)


def twins(outputs: Mapping[str, Found], besides: Sequence[str] = ()) -> tuple[str, ...]:
    """A warning for each adapter whose outputs are another's, bit for bit; ``besides``: those that change nothing are left out."""
    names = [name for name in outputs if name not in besides]
    said = []
    for place, name in enumerate(names):
        twin = next((other for other in names[:place] if _same(outputs[name], outputs[other])), None)
        if twin is not None:
            said.append(
                f"WARNING: adapter {name} gives the outputs of {twin}, bit for bit: was one checkpoint added under two names?"
            )
    return tuple(said)


def _same(one: Found, other: Found) -> bool:
    """Whether two findings are equal; heads of other label counts are not."""
    shapes = [{name: array.shape for name, array in batch.items()} for batch in (*one, *other)]
    return shapes[: len(one)] == shapes[len(one) :] and same_outputs(one, other)


def permuted_labels(scored: Scored) -> str:
    """A warning where another order of the labels answers the rows far better than the adapter's own; empty where none does.

    Heads are trained with labels by number; a data set that numbers them otherwise, or names given in another order, leaves a model
    that tells classes apart and calls them by wrong names.
    """
    if scored.kind != "label" or not len(scored):
        return ""
    width = scored.outputs.shape[1]
    chosen = chosen_labels(scored.outputs)
    counts = np.zeros((width, width), np.int64)
    answered = chosen >= 0
    np.add.at(counts, (chosen[answered], scored.labels[answered]), 1)
    order = _best_order(counts)
    hits, best = int(np.trace(counts)), int(counts[np.arange(width), order].sum())
    mine, other = wilson(hits, len(scored)), wilson(best, len(scored))
    if other.estimate - mine.estimate < PERMUTED_GAIN or mine.upper >= other.lower:
        return ""
    names = [scored.names[place] for place in order]
    return (
        f"WARNING: the labels of {scored.adapter or 'the base'} look permuted: accuracy on {scored.data} is {mine.estimate:.3f}, "
        f"and {other.estimate:.3f} with the order {','.join(names)}. If that is right: edgepeft relabel BUNDLE --labels "
        f"{scored.adapter or 'NAME'}={','.join(names)}"
    )


def _best_order(counts: np.ndarray) -> list[int]:
    """The label for each output that makes most rows right; of many labels by swaps, until none makes it better."""
    width = len(counts)
    rows = np.arange(width)
    if width <= _ALL_ORDERS:
        return list(max(permutations(range(width)), key=lambda order: int(counts[rows, list(order)].sum())))
    order = list(range(width))
    while True:
        gains = [
            (counts[i, order[j]] + counts[j, order[i]] - counts[i, order[i]] - counts[j, order[j]], i, j)
            for i in range(width)
            for j in range(i)
        ]
        gain, i, j = max(gains)
        if gain <= 0:
            return order
        order[i], order[j] = order[j], order[i]


def other_bases(bundle: Bundle, sources: Mapping[str, Source]) -> tuple[str, ...]:
    """A warning for each adapter whose checkpoint says that it was trained on another base."""
    base, said = bundle.manifest.base, []
    for name, source in sources.items():
        checkpoint = read_checkpoint(source)
        identity = checkpoint.record.get("base_identity")
        named = checkpoint.config.get("base_model_name_or_path")
        if isinstance(identity, str):
            if identity != base.identity:
                said.append(
                    f"WARNING: adapter {name} was trained on a base with identity {identity[:16]}…, this one has "
                    f"{base.identity[:16]}…: its numbers are for other weights"
                )
        elif isinstance(named, str) and named and not same_source(named, base.source):
            said.append(f"WARNING: adapter {name} says that it was trained on {named!r}; this base is {base.source!r}")
    return tuple(said)
