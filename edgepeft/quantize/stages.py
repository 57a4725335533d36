"""A model's graphs run one after the other: a single one, or an encoder and the decoder that takes what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..bundle.cache_names import as_pasts
from ..errors import BundleError
from .moments import Feeds

#: The output of the last graph whose distributions are compared.
OUTPUT = "logits"

#: What one run feeds to each graph. Those of a later graph hold what the fp32 graphs before it give.
Steps: TypeAlias = Sequence[Feeds]
Changes: TypeAlias = Mapping[int, Mapping[str, np.ndarray]]


class Answers:
    """What a model answers, as logarithms of probabilities, and how far others are from that over the same inputs."""

    def __init__(self, sessions: Sequence[Any], batches: Sequence[Steps]) -> None:
        """Run ``batches`` through ``sessions``; :class:`BundleError` where an answer is not finite."""
        self._sessions, self._batches = sessions, batches
        last = len(sessions) - 1
        self._references = [_logarithms(_logits(sessions, batch, {}, last)) for batch in batches]
        if not all(np.isfinite(reference).all() for reference in self._references):
            raise BundleError("the fp32 variant's logits are not finite on these texts: look at the checkpoint")

    def divergence(self, changes: Changes) -> float:
        """The mean divergence in nats where graphs are fed ``changes``, by their place; those before the first are not run."""
        return self._mean(self._sessions, changes, min(changes, default=len(self._sessions) - 1))

    def divergence_of(self, sessions: Sequence[Any]) -> float:
        """The mean divergence of another model's answers, all of its graphs run."""
        return self._mean(sessions, {}, 0)

    def _mean(self, sessions: Sequence[Any], changes: Changes, first: int) -> float:
        total, rows = 0.0, 0
        for batch, reference in zip(self._batches, self._references, strict=True):
            other = _logarithms(_logits(sessions, batch, changes, first))
            for one, two in zip(reference, other, strict=True):
                total += float(np.dot(np.exp(one), one - two))
            rows += len(reference)
        return max(0.0, total / max(1, rows))


def _logits(sessions: Sequence[Any], batch: Steps, changes: Changes, first: int) -> np.ndarray:
    """The last graph's logits; graphs from ``first`` on are run, each on what the one before gave."""
    handed: dict[str, np.ndarray] = {}
    for place in range(first, len(sessions) - 1):
        names = [value.name for value in sessions[place].get_outputs()]
        outputs = sessions[place].run(names, _fed(sessions[place], batch[place], handed, changes.get(place, {})))
        handed = as_pasts(dict(zip(names, outputs, strict=True)))
    last = len(sessions) - 1
    found: np.ndarray = sessions[last].run([OUTPUT], _fed(sessions[last], batch[last], handed, changes.get(last, {})))[
        0
    ]
    return found


def _fed(session: Any, *feeds: Feeds) -> dict[str, np.ndarray]:
    """What a session takes of ``feeds``, later ones first: an adapter has slots in several graphs."""
    taken = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    return {name: array for each in feeds for name, array in each.items() if name in taken}


def _logarithms(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, float32 ``[rows, choices]``."""
    rows = logits.reshape(-1, logits.shape[-1]).astype(np.float32, copy=False)
    rows = rows - rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows
