"""Accuracy on labelled rows: the one record that ``validate``, ``check`` and the checks on devices fill and judge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: What :func:`chosen_labels` gives for a row whose logits are not finite numbers: no label has this number.
NO_LABEL = -1


@dataclass(frozen=True)
class Beside:
    """The same rows answered by something else: PEFT, a native run, or the baseline of a check.

    ``hits`` are its right answers, ``same_label`` the rows where both choose one label, and ``max_difference`` the largest
    difference of a logit. ``drop`` is its accuracy minus the other's, with the bounds ``(lower, upper)`` it was judged by;
    ``p_value`` is McNemar's, exact. ``None`` stands for what was not asked.
    """

    hits: int | None = None
    same_label: int | None = None
    max_difference: float | None = None
    drop: float | None = None
    drop_bounds: tuple[float, float] | None = None
    p_value: float | None = None
    #: Of a head of numbers: the mean absolute difference from the data's.
    error: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """One adapter (``None``: the base) and variant on rows of text.

    ``hits`` are the right answers, ``None`` for rows without labels. ``bounds`` is Wilson's interval of their share.
    ``not_finite`` are rows whose logits hold NaN or infinity: such a row is never right, and never the same as another's.
    """

    adapter: str | None
    variant: str
    rows: int
    hits: int | None = None
    data: str = ""
    not_finite: int = 0
    bounds: tuple[float, float] | None = None
    peft: Beside | None = None
    native: Beside | None = None
    baseline: Beside | None = None
    #: Of a head of numbers: the mean absolute difference from the data's, and how far apart those are at most.
    error: float | None = None
    spread: float | None = None

    @property
    def name(self) -> str:
        """How tables and gates call the adapter."""
        return self.adapter or "(base)"

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, 0 … 1."""
        return self._share(self.hits)

    @property
    def peft_accuracy(self) -> float | None:
        """The same under PEFT."""
        return None if self.peft is None else self._share(self.peft.hits)

    @property
    def baseline_accuracy(self) -> float | None:
        """The same of the baseline."""
        return None if self.baseline is None else self._share(self.baseline.hits)

    @property
    def broken(self) -> str:
        """What to say of rows that are not finite; empty where there are none."""
        if not self.not_finite:
            return ""
        return f"{self.not_finite} of {self.rows} rows of {self.name} ({self.variant}) have logits that are not finite numbers"

    def _share(self, hits: int | None) -> float | None:
        return None if hits is None else hits / self.rows


def chosen_labels(logits: np.ndarray) -> np.ndarray:
    """The position of the largest logit of each row of ``[rows, labels]``; ``NO_LABEL`` where a row is not finite."""
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), NO_LABEL)


def count_same(one: np.ndarray, other: np.ndarray) -> int:
    """Rows of two arrays of answers that are the same: a label ``[rows]``, or a set of them ``[rows, labels]``.

    ``NO_LABEL`` is the same as nothing.
    """
    same = (one == other) & (one != NO_LABEL)
    return int((same if same.ndim == 1 else same.all(axis=-1)).sum())
