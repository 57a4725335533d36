"""How far a classifier's confidence can be believed: Brier scores, and the temperature that mends it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Temperatures that are looked at; beyond, all answers are alike or none is doubted.
LOWEST, HIGHEST = 0.05, 20.0
_HALVINGS = 60


def probabilities_of(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """The softmax of ``logits`` ``[rows, labels]`` over ``temperature``."""
    scaled = np.asarray(logits, np.float64) / temperature
    odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def brier_scores(labels: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Of each row the squared distance between its probabilities and its label's, summed over labels (Brier 1950): 0 to 2.

    Args:
        labels: Label ids ``[rows]``.
        probabilities: ``[rows, labels]``.
    """
    wanted = np.zeros(probabilities.shape)
    wanted[np.arange(len(labels)), labels] = 1.0
    found: npt.NDArray[np.float64] = ((np.asarray(probabilities, np.float64) - wanted) ** 2).sum(axis=1)
    return found


def calibrating_temperature(labels: npt.NDArray[np.integer], logits: npt.NDArray[np.floating]) -> float:
    """What ``logits`` ``[rows, labels]`` are to be divided by so that ``labels`` ``[rows]`` are likeliest (Guo et al. 2017).

    Above 1 where the classifier is too sure of itself. The likelihood is concave in 1 / temperature, so halving finds its top,
    between 0.05 and 20: a classifier that is right on all rows could be surer without end.

    Example:
        >>> logits = np.array([[2.0, 0.0]] * 4)
        >>> round(calibrating_temperature(np.array([0, 0, 0, 1]), logits), 4)  # right in 3 of 4: odds of 3, so 2 / log(3)
        1.8205
    """
    values = np.asarray(logits, np.float64)
    values = values - values.max(axis=1, keepdims=True)
    mine = values[np.arange(len(labels)), labels]
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The slope of the mean log-likelihood in 1 / temperature.
        slope = float((mine - (probabilities_of(values, 1 / middle) * values).sum(axis=1)).mean())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return 2 / (low + high)
