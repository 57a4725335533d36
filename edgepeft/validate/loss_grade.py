"""How surely something was lost on rows from elsewhere: what is warned of, and in which words."""

from __future__ import annotations

from enum import StrEnum

from ..metrics.intervals import Interval
from ..report.gate import Verdict, judge

#: The loss that is spoken of where no rule sets one, as a share: five points.
MARGIN = 0.05


class Grade(StrEnum):
    """What an interval says of a loss and a margin."""

    #: The whole interval is beyond the margin.
    BEYOND = "beyond"
    #: There is a loss, and the estimate reaches the margin; the interval does not leave a smaller one out.
    LIKELY = "likely"


def graded(loss: Interval | None, limit: float | None) -> Grade | None:
    """Whether a loss is worth a warning, and of which kind.

    To ask that the whole interval be beyond the margin misses most losses of some points more: the interval of a difference
    between 500 rows and 500 others is some 4.5 points wide on either side, so that of a loss of 7.6 points one in four or five is
    seen. To ask for a loss that is shown *and* an estimate that reaches the margin sees nine in ten of them. Without a loss it
    warns in at most 2.5 % (half of what the interval misses), and the less often the more rows there are.

    Args:
        loss: What is lost, as a share; below 0 it is a gain.
        limit: The margin; :data:`MARGIN` where there is none.

    Returns:
        ``None`` where nothing is to be said, or nothing was compared.

    Example:
        >>> graded(Interval(0.076, 0.033, 0.119, 0.95), None)
        <Grade.LIKELY: 'likely'>
    """
    margin = MARGIN if limit is None else limit
    if loss is None or not loss.lower > 0 or not loss.estimate >= margin:
        return None
    return Grade.BEYOND if judge(loss.lower, loss.upper, margin) is Verdict.FAIL else Grade.LIKELY


def how_sure(grade: Grade, limit: float | None) -> str:
    """A grade in words.

    Example:
        >>> how_sure(Grade.BEYOND, None)
        'surely more than 5 points'
    """
    points = f"{100 * (MARGIN if limit is None else limit):g} points"
    if grade is Grade.BEYOND:
        return f"surely more than {points}"
    return f"surely a loss, and by the estimate one of {points} or more; more rows would show it"
