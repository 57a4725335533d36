"""Choosing the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, NonFiniteError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 keep every token. ``repetition_penalty`` divides positive
    logits of tokens seen before and multiplies negative ones (Keskar et al. 2019, CTRL), 1 leaves them. Filters apply in
    the order of Hugging Face's ``generate``: penalty, temperature, top-k, top-p. ``seed`` ``None`` draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("temperature", self.temperature, 0.0), ("top_p", self.top_p, 0.0)):
            if _not_number(value) or value < least:
                raise InputError(f"{name} must be a finite number of at least 0, found {value!r}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, found {self.top_p!r}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k must be a whole number, 0 (off) or more, found {self.top_k!r}")
        if _not_number(self.repetition_penalty) or self.repetition_penalty <= 0:
            raise InputError(f"repetition_penalty must be a number above 0, found {self.repetition_penalty!r}")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise InputError(f"seed must be a whole number, 0 or more, found {self.seed!r}")


def _not_number(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)


class Sampler:
    """Chooses one row's tokens. Rows of a batch draw from generators of their own, so a row does not depend on others."""

    def __init__(self, sampling: Sampling, row: int, prompt: list[int]) -> None:
        self._sampling = sampling
        entropy = None if sampling.seed is None else [sampling.seed, row]
        self._random = np.random.default_rng(entropy)
        self._seen = np.unique(np.array(prompt, np.int64)) if sampling.repetition_penalty != 1.0 else None

    def pick(self, logits: np.ndarray) -> int:
        """The next token for logits ``[vocabulary]``; they are not changed."""
        sampling = self._sampling
        if self._seen is not None:
            logits = _penalized(logits, self._seen, sampling.repetition_penalty)
        best = int(logits.argmax())  # NaN counts as the largest
        if not math.isfinite(logits[best]):
            raise NonFiniteError(f"the next token's logits are not finite numbers ({logits[best]} the largest)")
        token = best if sampling.temperature == 0 else self._draw(logits)
        if self._seen is not None:
            self._seen = np.union1d(self._seen, [token])
        return token

    def _draw(self, logits: np.ndarray) -> int:
        sampling = self._sampling
        size = logits.shape[-1]
        if 0 < sampling.top_k < size:
            kept = np.argpartition(logits, size - sampling.top_k)[size - sampling.top_k :]
        else:
            kept = np.arange(size)
        scores = logits[kept].astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        kept = kept[order]
        # Differences first: the largest becomes 0, and a temperature near 0 cannot overflow.
        with np.errstate(over="ignore"):
            weights = np.exp((scores[order] - scores[order[0]]) / sampling.temperature)
        cumulative = np.cumsum(weights / weights.sum())
        if sampling.top_p < 1:
            # The smallest set of most likely tokens whose probability reaches top_p.
            count = int(np.searchsorted(cumulative, sampling.top_p)) + 1
            kept, cumulative = kept[:count], cumulative[:count]
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(kept[min(int(place), len(kept) - 1)])


def log_probability(logits: np.ndarray, token: int) -> float:
    """The logarithm of a token's probability by logits ``[vocabulary]``, in nats; NaN where the largest is no finite number."""
    top = logits.max()
    if not math.isfinite(top):
        return math.nan
    return float(logits[token] - top) - math.log(float(np.exp(logits - top).sum(dtype=np.float64)))


def _penalized(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    changed = logits.copy()
    values = logits[seen]
    changed[seen] = np.where(values > 0, values / penalty, values * penalty)
    return changed
