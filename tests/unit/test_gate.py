"""Gates: verdicts are decided by their constructors alone, and a number that is not finite never passes."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgepeft
from edgepeft.report import to_json, to_markdown
from edgepeft.report.gate import Gate, Report, Verdict, judge, overall

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
NOT_FINITE = (math.nan, math.inf, -math.inf)
PACKAGE = Path(edgepeft.__file__).parent


@pytest.mark.parametrize(
    ("value", "best", "verdict"),
    [
        (10.0, None, PASS),
        (9.9, None, PASS),
        (10.1, None, FAIL),
        (10.1, 9.0, INCONCLUSIVE),
        (10.1, 10.0, INCONCLUSIVE),
        (12.0, 11.0, FAIL),
        (9.0, 11.0, PASS),
        (None, None, FAIL),
        (None, 9.0, INCONCLUSIVE),
    ],
)
def test_at_most_and_its_mirror(value: float | None, best: float | None, verdict: Verdict) -> None:
    gate = Gate.at_most("g", value, 10.0, "ms", best=best)
    assert (gate.verdict, gate.value, gate.limit, gate.bound) == (verdict, value, 10.0, "max")
    mirrored = Gate.at_least("g", None if value is None else -value, -10.0, "ms", best=None if best is None else -best)
    assert (mirrored.verdict, mirrored.bound) == (verdict, "min")


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_is_not_finite_fails_by_every_constructor(value: float) -> None:
    for gate in (
        Gate.at_most("g", value, 1.0, "ms", "how", best=0.0),
        Gate.at_least("g", value, 1.0, "ms", "how", best=2.0),
        Gate.within("g", value, (0.0, 0.5), 1.0, "ms", "how"),
        Gate.within("g", value, (2.0, 3.0), 1.0, "ms", "how", bound="min"),
        Gate.decided("g", PASS, value, 1.0, "ms", "how"),
        Gate.decided("g", INCONCLUSIVE, value, 1.0, "ms", "how"),
    ):
        assert (gate.verdict, gate.value, gate.margin) == (FAIL, None, None)
        assert gate.detail == f"{value} is not a finite number; how"
        assert '"value": null' in to_json(Report("bench", "t", (gate,)))
        assert "is not a finite number" in to_markdown(Report("bench", "t", (gate,)))


@pytest.mark.parametrize("value", NOT_FINITE)
def test_no_gate_holds_a_number_that_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="is not a finite number"):
        Gate("g", PASS, value, 1.0, "ms")


@given(st.floats(), st.floats(), st.floats(allow_nan=False, allow_infinity=False))
def test_an_interval_with_an_end_that_is_nan_never_passes_by_it(lower: float, upper: float, limit: float) -> None:
    for bound, decisive in (("max", upper), ("min", lower)):
        verdict = judge(lower, upper, limit, bound)  # type: ignore[arg-type]
        if math.isnan(decisive):
            assert verdict is not PASS
        if verdict is PASS:
            assert decisive <= limit if bound == "max" else decisive >= limit


@pytest.mark.parametrize(
    ("interval", "most", "least"),
    [((0.8, 0.9), PASS, FAIL), ((0.9, 1.1), INCONCLUSIVE, INCONCLUSIVE), ((1.1, 1.2), FAIL, PASS)],
)
def test_intervals(interval: tuple[float, float], most: Verdict, least: Verdict) -> None:
    assert judge(*interval, 1.0) is most
    assert judge(*interval, 1.0, "min") is least
    assert Gate.within("g", 1.0, interval, 1.0, "share").verdict is most


def test_a_broken_thing_fails_whatever_its_number() -> None:
    gate = Gate.at_most("parity a", 0.0, 1e-4, "logit", "how", best=0.0, broken="the adapter changes nothing")
    assert (gate.verdict, gate.detail) == (FAIL, "the adapter changes nothing; how")
    assert Gate.at_least("g", 5.0, 1.0, "rows", broken="b").verdict is FAIL


def test_facts_and_several_gates_as_one() -> None:
    good, bad = Gate.holds("good", True), Gate.holds("slots", False, "write them as inputs")
    open_, slow = Gate.undecided("executed on moon", "nothing can"), Gate.at_most("p50", 2.0, 1.0, "ms", "median")
    assert [gate.verdict for gate in (good, bad, open_, slow)] == [PASS, FAIL, INCONCLUSIVE, FAIL]
    assert Gate.whole("target", (good,), "executed") == Gate("target", PASS, None, None, "", "executed")
    whole = Gate.whole("target", (good, open_, bad, slow), "executed")
    assert (whole.verdict, whole.detail) == (FAIL, "executed on moon: nothing can; slots: write them as inputs; p50")
    assert Gate.whole("target", (good, open_)).verdict is overall([PASS, INCONCLUSIVE]) is INCONCLUSIVE


def test_the_message_is_one_line_of_value_limit_and_detail() -> None:
    assert Gate.at_most("g", 2.0, 1.0, "ms", "median").message == "2 ms, limit ≤ 1 ms: median"
    assert Gate.holds("g", False, "why").message == "why"


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_verdicts_are_decided_in_gate_py_alone() -> None:
    """No other module makes a Gate field by field, or picks a verdict by a comparison of its own."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "report" / "gate.py":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        wrong += [
            f"{path}: Gate(…)" for call in _calls(tree) if isinstance(call.func, ast.Name) and call.func.id == "Gate"
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.IfExp) and any(
                "Verdict." in ast.unparse(side) for side in (node.body, node.orelse)
            ):
                wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong
