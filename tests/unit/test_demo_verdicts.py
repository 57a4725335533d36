"""What makes the demo fail, and what it only tells."""

import pytest

from edgepeft.demo.run import verdicts
from edgepeft.report.gate import Gate, Verdict

RIGHT = Gate.at_least("accuracy reviews int8", 0.9, 0.8, "share")
WRONG = Gate.at_least("accuracy reviews int8", 0.7, 0.8, "share")
QUICK = Gate.at_most("p50 fp32/reviews 1x32", 4.0, 15.0, "ms")
SLOW = Gate.at_most("p50 fp32/reviews 1x128", 40.0, 15.0, "ms")
LARGE = Gate.at_most("bundle size", 400.0, 200.0, "MB")


@pytest.mark.parametrize(
    ("gates", "checked", "timed"),
    [
        ([RIGHT, QUICK], Verdict.PASS, Verdict.PASS),
        ([RIGHT, QUICK, SLOW], Verdict.PASS, Verdict.FAIL),
        ([WRONG, QUICK], Verdict.FAIL, Verdict.PASS),
        ([RIGHT, LARGE, QUICK], Verdict.FAIL, Verdict.PASS),
    ],
)
def test_a_slow_machine_fails_no_demo(gates: list[Gate], checked: Verdict, timed: Verdict) -> None:
    assert verdicts(gates) == (checked, timed)
