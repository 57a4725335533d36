"""Whether one setting is better than another by few judgements, weighed with what such settings gained on other data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: The variance of a row's difference before any is seen, and how many rows that counts for. Two classifiers of equal accuracy that
#: differ on a quarter of the rows have it; of four rows that all agree the sample variance is 0, which says nothing.
_USUAL_VARIANCE = 0.25
_USUAL_ROWS = 4


@dataclass(frozen=True)
class ExpectedGain:
    """What a setting gained over another elsewhere: its mean and standard deviation over draws of data, in accuracy.

    Example:
        >>> ExpectedGain(0.05, 0.05).after(np.array([0.0, -1.0, 0.0, 0.0])) > 0
        True
        >>> ExpectedGain(0.05, 0.05).after(np.tile([0.0, -1.0, 0.0, 0.0], 50)) > 0
        False
    """

    mean: float
    deviation: float

    @property
    def reversed(self) -> ExpectedGain:
        """What the other one gains over this."""
        return ExpectedGain(-self.mean, self.deviation)

    def after(self, differences: npt.NDArray[np.float64]) -> float:
        """The gain to expect once rows were judged: the mean of the posterior of a normal mean with a normal prior.

        See Gelman et al., *Bayesian Data Analysis*, 3rd edition, section 2.5. The variance of a row is that of the sample, with
        four rows of a variance of a quarter added to it.

        Args:
            differences: What one has right minus what the other has, a row each ``[rows]``.

        Returns:
            The expected gain, in accuracy; :attr:`mean` where no row was judged.
        """
        rows = len(differences)
        if rows == 0:
            return self.mean
        squares = float(((differences - differences.mean()) ** 2).sum())
        variance = (squares + _USUAL_ROWS * _USUAL_VARIANCE) / (rows + _USUAL_ROWS)
        seen, before = rows / variance, 1 / self.deviation**2
        return float((seen * differences.mean() + before * self.mean) / (seen + before))
