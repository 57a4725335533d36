"""Runs that are broken off: what the report says, and that no earlier pass stays in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_bench_compare import TARGET, FakeRunner, flat, make_bundle, save

from edgepeft.bench import bench, bench_report, check, check_report, load_bench
from edgepeft.errors import InputError, MeasureError
from edgepeft.html_report import read_report
from edgepeft.report import Keep, Partial, replacing_report, write_reports
from edgepeft.report.gate import Gate, Report, Verdict
from edgepeft.worker.job import Job, WorkerResult

PASS = Report(kind="bench", title="Bench of b", gates=(Gate.holds("it is good", True),))
STOPS = [(KeyboardInterrupt(), "interrupted"), (SystemExit(143), "ended by signal 15")]


class Stopping(FakeRunner):
    """Breaks off at the job ``after``, counted from 0."""

    def __init__(self, after: int, stop: BaseException) -> None:
        super().__init__(flat)
        self.after, self.stop = after, stop

    def __call__(self, job: Job) -> WorkerResult:
        if len(self.jobs) == self.after:
            raise self.stop
        return super().__call__(job)


def measure_in(
    folder: Path, stem: str, run: Callable[[Keep], None], report: Callable[[Any], Report] = lambda found: found
) -> None:
    """As the commands do it."""
    with replacing_report(folder, stem) as partial:
        run(lambda make: partial.keep(lambda: None if (found := make()) is None else report(found)))


def raising(error: Exception, begun: bool) -> Callable[[Keep], None]:
    """A measurement that fails, before or after its first step."""

    def run(keep: Keep) -> None:
        if begun:
            keep(lambda: None)
        raise error

    return run


def verdict_in(folder: Path, stem: str = "bench") -> Verdict:
    return read_report(folder / f"{stem}.json").report.verdict


@pytest.mark.parametrize(("stop", "why"), STOPS)
@pytest.mark.parametrize("earlier", [True, False])
def test_a_broken_off_bench_leaves_what_it_measured(
    tmp_path: Path, stop: BaseException, why: str, earlier: bool
) -> None:
    out = tmp_path / "out"
    if earlier:
        write_reports(out, "bench", PASS)
    bundle = make_bundle(tmp_path / "b")

    def run(keep: Keep) -> None:
        bench(bundle, TARGET, runner=Stopping(3, stop), keep=keep)

    with pytest.raises(type(stop)):
        measure_in(out, "bench", run, lambda found: bench_report(found, TARGET))
    saved = read_report(out / "bench.json").report
    assert saved.verdict is not Verdict.PASS
    assert (saved.gates[0].name, saved.gates[0].verdict) == ("measured to the end", Verdict.INCONCLUSIVE)
    assert saved.title.endswith(f"(partial: {why})")
    assert saved.data["partial"] == why
    cases = {case["variant"]: len(case["process_p50_ms"]) for case in saved.data["cases"]}
    assert cases == {"int8": 2, "fp32": 1}, "all processes that ended are in it"
    assert "partial" in (out / "bench.md").read_text()
    assert "measured to the end" in (out / "bench.junit.xml").read_text()
    with pytest.raises(InputError, match=rf"is partial \({why}\), and so no baseline: measure it again"):
        load_bench(out / "bench.json")


@pytest.mark.parametrize(("saved", "after", "kept"), [(True, 4, 2), (True, 5, 3), (False, 4, 1), (False, 7, 1)])
def test_a_broken_off_check_leaves_its_rounds(tmp_path: Path, saved: bool, after: int, kept: int) -> None:
    """Sessions of two processes against a report, rounds of four against a bundle."""
    bundle = make_bundle(tmp_path / "b")
    baseline = save(bundle, tmp_path / "saved") if saved else bundle
    ask = {"variants": ["fp32"], "adapters": ["reviews"], "shapes": ["1x32"]}

    def run(keep: Keep) -> None:
        check(bundle, baseline, TARGET, runner=Stopping(after, KeyboardInterrupt()), keep=keep, **ask)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        measure_in(tmp_path, "check", run, check_report)
    report = read_report(tmp_path / "check.json").report
    assert report.verdict is Verdict.INCONCLUSIVE
    (case,) = report.data["cases"]
    assert case["replicates"] == kept
    assert case["verdict"] == "inconclusive"


def test_stopped_before_anything_was_measured(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing_report(tmp_path, "validate-web"):
        raise KeyboardInterrupt
    assert verdict_in(tmp_path, "validate-web") is Verdict.INCONCLUSIVE


def test_from_the_first_step_on_no_earlier_pass_is_there(tmp_path: Path) -> None:
    """A process that is killed cannot write: what is there then was written before."""
    write_reports(tmp_path, "bench", PASS)
    with replacing_report(tmp_path, "bench") as partial:
        assert verdict_in(tmp_path) is Verdict.PASS, "a call may still turn out to be wrong"
        partial.keep(lambda: None)
        assert verdict_in(tmp_path) is Verdict.INCONCLUSIVE
        assert "it is still running, or was killed" in (tmp_path / "bench.md").read_text()
        assert "measured to the end" in (tmp_path / "bench.junit.xml").read_text()
        write_reports(tmp_path, "bench", PASS)
    assert verdict_in(tmp_path) is Verdict.PASS


def test_a_wrong_call_leaves_the_earlier_report(tmp_path: Path) -> None:
    files = write_reports(tmp_path, "bench", PASS)
    before = {path: path.read_bytes() for path in (files.json, files.markdown, files.junit)}
    for begun in (False, True):
        with pytest.raises(InputError):
            measure_in(tmp_path, "bench", raising(InputError("the saved report is from another host"), begun))
        assert {path: path.read_bytes() for path in before} == before


def test_a_failed_measurement_replaces_an_earlier_report_and_makes_none(tmp_path: Path) -> None:
    for earlier in (False, True):
        if earlier:
            write_reports(tmp_path, "bench", PASS)
        with pytest.raises(MeasureError):
            measure_in(tmp_path, "bench", raising(MeasureError("the worker was killed"), begun=True))
        assert (tmp_path / "bench.json").exists() is earlier
    assert verdict_in(tmp_path) is Verdict.FAIL
    assert json.loads((tmp_path / "bench.json").read_text())["data"] == {"error": "the worker was killed"}


def test_a_partial_report_never_passes() -> None:
    partial = Partial()
    partial.keep(lambda: PASS)
    assert PASS.verdict is Verdict.PASS
    assert partial.report("bench", "interrupted").verdict is Verdict.INCONCLUSIVE
