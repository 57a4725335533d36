"""What is warned of where an adapter meets rows from elsewhere, and how sure the warning is."""

from __future__ import annotations

import math

import pytest

from edgepeft.metrics import main_metrics
from edgepeft.metrics.intervals import Interval, newcombe_drop, wilson
from edgepeft.targets import GeneralizationRules
from edgepeft.validate.generalization import Generalization
from edgepeft.validate.loss_grade import Grade, graded

ACCURACY = next(each for each in main_metrics() if each.name == "accuracy")


def elsewhere(right: int, rows: int = 500) -> Generalization:
    """``right`` of ``rows`` rows, where 89 % of as many are right in domain."""
    drop = newcombe_drop(round(0.89 * rows), rows, right, rows)
    return Generalization("head", "fp32", "far.csv", "out", ACCURACY, rows, wilson(right, rows), drop=drop)


@pytest.mark.parametrize(
    ("right", "limit", "said"),
    [
        (445, None, None),  # nothing is lost
        (425, None, None),  # 4.0 points, of an interval that holds 0
        (421, None, None),  # 4.8 points: shown, and below the margin
        (407, None, "surely a loss, and by the estimate one of 5 points or more"),
        (360, None, "surely more than 5 points"),
        (407, 0.02, "surely more than 2 points"),
        (390, 0.10, "by the estimate one of 10 points or more"),
        (407, 0.10, None),
    ],
)
def test_a_warning_says_how_sure_it_is(right: int, limit: float | None, said: str | None) -> None:
    warnings = elsewhere(right).warnings(GeneralizationRules(max_drop=limit))
    assert bool(warnings) == (said is not None)
    assert said is None or said in warnings[0]


def test_few_rows_show_no_loss() -> None:
    """8 points of 50 rows lie within chance; 18 do not."""
    assert elsewhere(40, 50).warnings(GeneralizationRules()) == ()
    assert elsewhere(36, 50).warnings(GeneralizationRules()) != ()


def test_what_is_no_number_is_no_loss() -> None:
    assert graded(None, None) is None
    assert graded(Interval(0.2, math.nan, math.nan, 0.95), None) is None
    assert graded(Interval(math.nan, 0.1, 0.2, 0.95), None) is None
    assert graded(Interval(0.2, 0.1, 0.3, 0.95), 0.0) is Grade.BEYOND
    assert graded(Interval(-0.2, -0.3, -0.1, 0.95), 0.0) is None
