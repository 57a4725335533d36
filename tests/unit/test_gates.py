"""Budget and floor verdicts from numbers written down here."""

from __future__ import annotations

import pytest

from edgepeft.bench import BenchResult, BundleFacts, CaseResult, Host, Sampling, VariantResult, budget_gates, floor_gate
from edgepeft.report.gate import Gate, Verdict
from edgepeft.targets import Budgets, Target, load_target

HOST = Host(cpu="c", cores=2, os="Linux", machine="x86_64", python="3", onnxruntime="1.32.0", threads=1)


def target(**budgets: object) -> Target:
    return load_target("linux-x64-cpu").model_copy(update={"budgets": Budgets.model_validate(budgets)})


def result(processes: tuple[float, ...] = (10.0, 11.0, 12.0), **variant: object) -> BenchResult:
    middle = sorted(processes)[1]
    return BenchResult(
        target="linux-x64-cpu",
        bundle=BundleFacts(
            path="b", mode="swap", base_identity="0", bundle_mb=100.0, variants_mb={}, adapters_mb={"a": 1.0, "b": 3.0}
        ),
        host=HOST,
        sampling=Sampling(),
        cases=(
            CaseResult(
                variant="fp32", adapter="a", shape="1x32", process_p50_ms=processes, iterations=30, p50_ms=middle,
                p95_ms=None, p99_ms=None,
            ),
        ),
        variants=(VariantResult(**{"variant": "fp32", "load_ms": (300.0, 310.0, 900.0), "rss_loaded_mb": 150.0,
                                   "peak_rss_mb": 210.0, **variant}),),
    )  # fmt: skip


def gates(found: BenchResult, **budgets: object) -> dict[str, Gate]:
    return {gate.name: gate for gate in budget_gates(found, target(**budgets))}


def test_a_key_without_a_budget_is_not_judged() -> None:
    assert gates(result()) == {}
    assert gates(result(), p50_ms={"1x128": 5}) == {}
    assert gates(result(peak_rss_mb=None), peak_rss_mb=1) == {}  # a platform that cannot tell


@pytest.mark.parametrize(
    ("processes", "verdict"),
    [
        ((10.0, 11.0, 12.0), Verdict.PASS),
        ((10.0, 11.0, 900.0), Verdict.PASS),  # one disturbed process
        ((14.0, 16.0, 18.0), Verdict.INCONCLUSIVE),  # one process shows that it can
        ((16.0, 17.0, 18.0), Verdict.FAIL),
    ],
)
def test_times_fail_only_when_every_process_is_over(processes: tuple[float, ...], verdict: Verdict) -> None:
    gate = gates(result(processes), p50_ms={"1x32": 15})["p50 fp32/a 1x32"]
    assert (gate.verdict, gate.value, gate.limit, gate.unit) == (verdict, sorted(processes)[1], 15, "ms")


def test_own_and_mapped_memory_are_judged_apart() -> None:
    held = {"anonymous_mb": 57.0, "mapped_mb": 1064.0, "load_peak_mb": 1374.0}
    found = gates(result(**held), anonymous_mb=100, mapped_mb=1000, load_peak_mb=1400)
    assert {name: gate.verdict.value for name, gate in found.items()} == {
        "own memory fp32": "pass",
        "mapped memory fp32": "fail",
        "peak at load fp32": "pass",
    }
    assert gates(result(), anonymous_mb=1, mapped_mb=1, load_peak_mb=1) == {}, "a platform that cannot tell"


def test_every_budget_has_its_gate() -> None:
    found = gates(
        result(swaps=100, swap_process_p50_ms=(0.1, 0.2, 0.3), swap_p50_ms=0.2, rss_drift_mb=7.0),
        p50_ms={"1x32": 20}, swap_ms=1, load_ms=400, peak_rss_mb=200, rss_drift_mb=5, bundle_mb=100, adapter_mb=2,
    )  # fmt: skip
    assert {name: gate.verdict.value for name, gate in found.items()} == {
        "p50 fp32/a 1x32": "pass",
        "swap fp32": "pass",
        "load fp32": "pass",
        "peak RSS fp32": "fail",
        "RSS drift fp32": "fail",
        "bundle size": "pass",  # at the limit
        "adapter size a": "pass",
        "adapter size b": "fail",
    }
    assert found["load fp32"].value == 310.0
    assert found["peak RSS fp32"].margin == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("hits", "verdict"), [(95, Verdict.PASS), (85, Verdict.INCONCLUSIVE), (60, Verdict.FAIL), (100, Verdict.PASS)]
)
def test_a_floor_is_judged_by_the_interval(hits: int, verdict: Verdict) -> None:
    gate = floor_gate("accuracy a", hits, 100, 0.8)
    assert (gate.verdict, gate.value, gate.bound) == (verdict, hits / 100, "min")
    assert f"{hits} of 100 rows" in gate.detail
