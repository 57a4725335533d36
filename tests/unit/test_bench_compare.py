"""``bench`` and ``check`` with the process runner injected: no process is started and no wall time is asserted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgepeft.bench import (
    Case,
    CaseSamples,
    CheckResult,
    Host,
    Job,
    Sampling,
    SwapSamples,
    WorkerResult,
    bench,
    bench_report,
    check,
    check_report,
    load_bench,
    run_worker,
)
from edgepeft.bench.measure import make_plan
from edgepeft.bench.sessions import saved_report
from edgepeft.bundle import (
    MANIFEST_NAME,
    AdapterEntry,
    BaseEntry,
    GraphInput,
    Manifest,
    SlotTable,
    Variant,
    dump_manifest,
    hash_file,
    read_bundle,
)
from edgepeft.data import Examples
from edgepeft.errors import InputError, MeasureError, TargetError, UnknownAdapterError
from edgepeft.report import write_reports
from edgepeft.report.gate import Verdict
from edgepeft.targets import CheckRules, Target, load_target
from edgepeft.worker import process

TARGET = load_target("linux-x64-cpu")

HOST = Host(cpu="Test CPU", cores=2, os="Linux", machine="x86_64", python="3.11.7", onnxruntime="1.32.0", threads=1)


def make_bundle(folder: Path, adapters: tuple[str, ...] = ("reviews", "movies"), identity: str = "0") -> Path:
    """A bundle with variants fp32 and int8 whose files are placeholders of 2000, 1000 and 100 bytes."""
    contents = {"onnx/model.onnx": 2000, "onnx/model_int8.onnx": 1000, "config.json": 100}
    contents |= {f"adapters/{name}.{suffix}": 100 for name in adapters for suffix in ("onnx_adapter", "onnx")}
    for name, size in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    slots = SlotTable()
    manifest = Manifest(
        task="text-classification",
        mode="swap",
        base=BaseEntry(
            source="test", architecture="T", model_type="t", captured_by="test", identity=identity * 64, parameters=1
        ),
        inputs=(GraphInput(name="input_ids", dtype="int64", shape=("batch_size", "sequence_length")),),
        outputs=(GraphInput(name="logits", dtype="float32", shape=("batch_size", 2)),),
        max_length=256,
        slots=slots,
        variants={
            "fp32": Variant(file="onnx/model.onnx", recipe="fp32", quantized_share=0),
            "int8": Variant(file="onnx/model_int8.onnx", recipe="int8", quantized_share=0.9),
        },
        adapters={
            name: AdapterEntry(
                onnx_adapter=f"adapters/{name}.onnx_adapter",
                onnx=f"adapters/{name}.onnx",
                method="LORA",
                source="test",
                base_identity=identity * 64,
                slots_hash=slots.hash,
                tensors={},
                ranks={},
                labels=("no", "yes"),
                bytes=100,
            )
            for name in adapters
        },
        files={name: hash_file(folder / name) for name in contents},
    )
    (folder / MANIFEST_NAME).write_text(dump_manifest(manifest), encoding="utf-8")
    return folder


class FakeRunner:
    """Answers jobs: ``latency(job, case)`` ms, times process noise and an AR(1) drift over all processes."""

    def __init__(self, latency: Callable[[Job, Case], float], noise: float = 0.01, drift: float = 0.02, seed: int = 0):
        self.latency = latency
        self.noise = noise
        self.drift = drift
        self.rng = np.random.default_rng(seed)
        self.level = 0.0
        self.jobs: list[Job] = []
        self.host = HOST

    def __call__(self, job: Job) -> WorkerResult:
        self.jobs.append(job)
        self.level = 0.9 * self.level + self.rng.normal(0, self.drift)
        cases = tuple(
            CaseSamples(
                case=case,
                samples_ms=tuple(
                    (
                        self.latency(job, case)
                        * np.exp(self.level + self.rng.normal(0, self.noise) + self.rng.exponential(0.02, 7))
                    ).tolist()
                ),
            )
            for case in job.cases
        )
        swap = None
        if job.swaps:
            swap = SwapSamples(
                cold_ms=(0.5,),
                use_ms=(0.01,) * job.swaps,
                first_inference_ms=(20.0,) * 6,
                rss_before_mb=200.0,
                rss_after_mb=201.0,
            )
        return WorkerResult(
            host=self.host,
            import_ms=100.0,
            load_ms=300.0,
            rss_start_mb=50.0,
            rss_loaded_mb=150.0,
            peak_rss_mb=210.0,
            cases=cases,
            swap=swap,
        )


def flat(job: Job, case: Case) -> float:
    """10 ms for 32 tokens, a fifth less as int8."""
    return case.batch * case.sequence / 3.2 * (0.8 if job.variant == "int8" else 1.0)


def slower(factor: float, *, variant: str | None = None):
    """As :func:`flat`, but the bundle in the folder ``slow`` takes ``factor`` times as long."""

    def latency(job: Job, case: Case) -> float:
        hit = Path(job.bundle).name == "slow" and variant in (None, job.variant)
        return flat(job, case) * (factor if hit else 1.0)

    return latency


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def with_floor(**floors: float) -> Target:
    return TARGET.model_copy(update={"accuracy": floors})


# bench


def test_bench_measures_every_variant_adapter_and_shape_of_the_target(bundle: Path) -> None:
    runner = FakeRunner(flat)
    result = bench(bundle, TARGET, runner=runner)
    assert [c.key for c in result.cases] == [
        f"{variant}/{adapter} {shape}"
        for variant in ("int8", "fp32")
        for adapter in ("reviews", "movies")
        for shape in ("1x32", "1x128")
    ]
    assert [job.variant for job in runner.jobs] == ["int8", "fp32"] * 3  # interleaved
    assert {len(c.process_p50_ms) for c in result.cases} == {3}
    first = result.cases[0]
    assert first.p50_ms == np.median(first.process_p50_ms)
    assert (first.p95_ms, first.p99_ms, first.iterations) == (None, None, 21)
    assert result.host == HOST
    assert result.variants[0].swaps == 3000
    assert result.variants[0].swap_p50_ms == pytest.approx(0.01)
    assert result.variants[0].rss_drift_mb == pytest.approx(1.0)
    total = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file() and path.name != "edgepeft.json")
    assert result.bundle.bundle_mb == pytest.approx(total / 1e6)
    assert result.bundle.adapters_mb == {"reviews": 0.0001, "movies": 0.0001}


def test_bench_of_a_bundle_without_adapters_measures_the_base(tmp_path: Path) -> None:
    result = bench(make_bundle(tmp_path / "b", adapters=()), TARGET, runner=FakeRunner(flat), shapes=["2x8"])
    assert {(c.adapter, c.shape) for c in result.cases} == {(None, "2x8")}


def test_bench_reports_survive_json(bundle: Path, tmp_path: Path) -> None:
    result = bench(bundle, TARGET, runner=FakeRunner(flat))
    files = write_reports(tmp_path / "out", "bench", bench_report(result, TARGET))
    assert load_bench(files.json) == result
    bare = tmp_path / "bare.json"
    bare.write_text(result.model_dump_json(), encoding="utf-8")
    assert load_bench(bare) == result


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"adapters": ["nobody"]}, UnknownAdapterError, "nobody.*reviews, movies"),
        ({"variants": ["q4"]}, InputError, "no variant 'q4'.*fp32, int8"),
        ({"shapes": ["1x512"]}, InputError, "at most 256 tokens"),
        ({"shapes": ["big"]}, InputError, "not a shape"),
        ({"shapes": []}, InputError, "nothing to measure"),
        ({"processes": 1}, InputError, "at least 2"),
        ({"target": "linux-x64"}, TargetError, "unknown target"),
    ],
)
def test_wrong_calls(bundle: Path, call: dict[str, object], error: type[Exception], says: str) -> None:
    runner = FakeRunner(flat)
    with pytest.raises(error, match=says):
        bench(bundle, **{"target": TARGET, "runner": runner, **call})  # type: ignore[arg-type]
    assert not runner.jobs


def test_another_machine_or_an_old_runtime_is_refused(bundle: Path) -> None:
    far = TARGET.model_copy(update={"machine": TARGET.machine.model_copy(update={"arch": "wasm32"})})
    with pytest.raises(TargetError, match=r"linux wasm32, this machine is .* cannot be measured here"):
        bench(bundle, far)
    runner = FakeRunner(flat)
    runner.host = HOST.model_copy(update={"onnxruntime": "1.20.1"})
    with pytest.raises(TargetError, match=r"needs onnxruntime 1\.28\.0 or newer, found 1\.20\.1"):
        bench(bundle, TARGET, runner=runner)


# check against a bundle


def test_twenty_checks_of_a_bundle_against_itself_never_fail(bundle: Path) -> None:
    results = [check(bundle, bundle, TARGET, runner=FakeRunner(flat, seed=seed)) for seed in range(20)]
    assert [r.verdict for r in results].count(Verdict.FAIL) == 0
    assert [r.verdict for r in results].count(Verdict.PASS) >= 15  # 1 % process noise: it has the power to pass


def test_twice_the_work_fails_and_stops_early(bundle: Path, tmp_path: Path) -> None:
    runner = FakeRunner(slower(2.0))
    result = check(make_bundle(tmp_path / "slow"), bundle, TARGET, runner=runner)
    assert result.verdict is Verdict.FAIL
    assert result.verdict.exit_code == 1
    assert all(c.verdict is Verdict.FAIL and c.lower > 1.1 for c in result.cases)
    # Drift cancels within a round; what is left is 1 % process noise, so the ratio is known to a few per cent.
    assert [c.ratio for c in result.cases] == pytest.approx([2.0] * 8, rel=0.05)
    assert len(runner.jobs) < 2 * 4 * 12


def test_one_slow_variant_fails_its_cases_only(bundle: Path, tmp_path: Path) -> None:
    slow = make_bundle(tmp_path / "slow")
    result = check(slow, bundle, TARGET, runner=FakeRunner(slower(1.6, variant="int8"), drift=0.0))
    assert {(c.variant, c.verdict) for c in result.cases} == {("int8", Verdict.FAIL), ("fp32", Verdict.PASS)}


def test_a_noisy_machine_is_inconclusive(bundle: Path) -> None:
    rules = CheckRules(max_rounds=5)
    result = check(bundle, bundle, TARGET, runner=FakeRunner(flat, noise=0.5), rules=rules)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.verdict.exit_code == 3
    assert {c.replicates for c in result.cases if c.verdict is Verdict.INCONCLUSIVE} == {5}


def test_the_order_is_abba_then_baab_and_decided_cases_are_dropped(bundle: Path, tmp_path: Path) -> None:
    def latency(job: Job, case: Case) -> float:
        return flat(job, case) * (runner.rng.uniform(0.3, 3) if case.sequence == 128 else 1.0)

    runner = FakeRunner(latency, drift=0.0)
    other = make_bundle(tmp_path / "other")
    ask = {"adapters": ["reviews"], "variants": ["fp32"]}
    check(other, bundle, TARGET, runner=runner, rules=CheckRules(max_rounds=6), **ask)
    sides = "".join("B" if Path(job.bundle).name == "other" else "A" for job in runner.jobs)
    assert sides == "ABBABAAB" * 3
    assert [len(job.cases) for job in runner.jobs] == [2] * 16 + [1] * 8


def test_time_runs_out(bundle: Path) -> None:
    runner = FakeRunner(flat)
    result = check(bundle, bundle, TARGET, runner=runner, variants=["fp32"], rules=CheckRules(max_seconds=1e-9))
    assert len(runner.jobs) == 4
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.cases[0].lower is None


def test_what_only_one_bundle_has_is_noted_or_refused(bundle: Path, tmp_path: Path) -> None:
    more = make_bundle(tmp_path / "more", adapters=("reviews", "movies", "extra"), identity="1")
    result = check(more, bundle, TARGET, runner=FakeRunner(flat))
    assert {c.adapter for c in result.cases} == {"reviews", "movies"}
    assert "not compared, because not in the baseline: adapter extra" in result.notes
    assert any("different bases" in note for note in result.notes)
    with pytest.raises(InputError, match="adapter extra is not in the baseline"):
        check(more, bundle, TARGET, runner=FakeRunner(flat), adapters=["extra", "movies"])


def test_budgets_are_gates_of_a_check_too(bundle: Path) -> None:
    tight = TARGET.model_copy(update={"budgets": TARGET.budgets.model_copy(update={"peak_rss_mb": 100.0})})
    result = check(bundle, bundle, tight, runner=FakeRunner(flat))
    assert {g.name for g in result.gates if g.verdict is Verdict.FAIL} == {"peak RSS int8", "peak RSS fp32"}
    assert result.verdict is Verdict.FAIL
    assert CheckResult.model_validate_json(result.model_dump_json()) == result
    assert check_report(result).verdict is Verdict.FAIL


# check against a saved report


def save(bundle: Path, folder: Path, **changes: object) -> Path:
    result = bench(bundle, TARGET, runner=FakeRunner(flat, seed=9))
    result = result.model_copy(update={"host": HOST.model_copy(update=changes)})
    return write_reports(folder, "bench", bench_report(result, TARGET)).json


def test_a_saved_report_serves_as_baseline(bundle: Path, tmp_path: Path) -> None:
    saved = save(bundle, tmp_path / "out")
    results = [check(bundle, saved, TARGET, runner=FakeRunner(flat, seed=seed)) for seed in range(20)]
    assert Verdict.FAIL not in {r.verdict for r in results}
    assert not results[0].paired
    assert any("widened by 3%" in note for note in results[0].notes)
    slow = make_bundle(tmp_path / "slow")
    assert check(slow, saved, TARGET, runner=FakeRunner(slower(3.0))).verdict is Verdict.FAIL


def test_a_report_of_another_host_is_refused_and_says_why(bundle: Path, tmp_path: Path) -> None:
    saved = save(bundle, tmp_path / "out", cpu="Other CPU", threads=4)
    said = (
        r"cpu was 'Other CPU', is 'Test CPU'; threads was 4, is 1.*Sizes can: the bundle had 0\.00 MB, it has 0\.00 MB"
    )
    with pytest.raises(InputError, match=said):
        check(bundle, saved, TARGET, runner=FakeRunner(flat))


def test_a_saved_report_is_decided_by_as_many_sessions_as_it_takes(bundle: Path, tmp_path: Path) -> None:
    saved = save(bundle, tmp_path / "out")
    ask = {"variants": ["fp32"], "adapters": ["reviews"], "shapes": ["1x32"]}
    quiet = [
        check(bundle, saved, TARGET, runner=FakeRunner(flat, drift=0.004, seed=seed), **ask)  # type: ignore[arg-type]
        for seed in range(20)
    ]
    assert [r.verdict for r in quiet].count(Verdict.PASS) >= 18, "a quiet host is conclusive in nine checks of ten"
    assert {c.replicates for r in quiet for c in r.cases} >= {3}, "and stops at the first look"
    runner = FakeRunner(slower(1.3), drift=0.004)
    slow = check(make_bundle(tmp_path / "slow"), saved, TARGET, runner=runner, **ask)  # type: ignore[arg-type]
    assert slow.verdict is Verdict.FAIL
    assert len(runner.jobs) == 2 * slow.cases[0].replicates
    assert slow.cases[0].replicates >= 8, "a burst as long as the first look is no slowdown"
    # On the edge nothing decides: all rounds are run, and the gate says what would.
    edge = check(
        make_bundle(tmp_path / "e" / "slow"),
        saved,
        TARGET,
        runner=FakeRunner(slower(1.1), drift=0.0),
        **ask,  # type: ignore[arg-type]
    )
    (case,) = edge.cases
    assert (case.verdict, case.replicates) == (Verdict.INCONCLUSIVE, 24)
    assert case.detectable is not None
    assert 1.1 < case.detectable < 1.25
    detail = next(gate.detail for gate in edge.gates if gate.name.startswith("latency ratio"))
    assert "the smallest slowdown that would have failed is" in detail
    assert "no number of sessions decides it against this report (3 processes, 3% drift)" in detail


def test_a_report_of_several_sessions_is_read_by_sessions(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each session is a draw of the machine's drift: the mean of ten is known better than that of one, however long it is."""
    waited: list[float] = []
    monkeypatch.setattr("edgepeft.bench.measure.time.sleep", waited.append)
    ask = {"variants": ["fp32"], "adapters": ["reviews"], "shapes": ["1x32"]}
    steps: list[str] = []
    result = bench(
        bundle, TARGET, processes=2, sessions=10, pause_s=7, runner=FakeRunner(flat, drift=0.004),
        progress=lambda done, total, what: steps.append(f"{done}/{total} {what}"), **ask,  # type: ignore[arg-type]
    )  # fmt: skip
    assert (result.sessions, waited) == (10, [7.0] * 9)
    assert steps[:4] == [
        "0/20 fp32, process 1 of 20, session 1 of 10",
        "1/20 fp32, process 2 of 20, session 1 of 10",
        "2/20 7 s until session 2 of 10",
        "2/20 fp32, process 3 of 20, session 2 of 10",
    ]
    saved = write_reports(tmp_path / "out", "bench", bench_report(result, TARGET)).json
    assert load_bench(saved) == result
    (case,) = make_plan(read_bundle(bundle).manifest, TARGET, **ask).cases  # type: ignore[arg-type]
    sessions = saved_report(saved).sessions_ms("fp32", case)
    assert [len(session) for session in sessions] == [2] * 10
    assert sum(sessions, ()) == result.cases[0].process_p50_ms
    one = save(bundle, tmp_path / "one")
    widths = []
    for baseline in (saved, one):
        edge = make_bundle(tmp_path / baseline.parent.name / "slow")
        found = check(edge, baseline, TARGET, runner=FakeRunner(slower(1.1), drift=0.0), **ask)  # type: ignore[arg-type]
        assert found.cases[0].lower is not None
        widths.append(found.cases[0].ratio / found.cases[0].lower)
        assert "bench --sessions 10" in found.cases[0].advice or baseline is saved
    assert widths[0] - 1 < 0.6 * (widths[1] - 1)
    with pytest.raises(InputError, match="sessions must be at least 1"):
        bench(bundle, TARGET, sessions=0, runner=FakeRunner(flat))
    with pytest.raises(InputError, match="at least 0; got 2 and nan"):
        bench(bundle, TARGET, sessions=2, pause_s=float("nan"), runner=FakeRunner(flat))
    odd = json.loads(saved.read_text())
    odd["data"]["sessions"] = 3
    saved.write_text(json.dumps(odd))
    with pytest.raises(InputError, match="20 processes of fp32/reviews 1x32 are not 3 sessions of as many"):
        load_bench(saved)


def test_seconds_alone_end_a_check(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Clocked(FakeRunner):
        def __call__(self, job: Job) -> WorkerResult:
            now[0] += 1.0
            return super().__call__(job)

    for module in ("interleave", "sessions"):
        monkeypatch.setattr(f"edgepeft.bench.{module}.monotonic", lambda: now[0])
    ask = {"variants": ["fp32"], "adapters": ["reviews"], "shapes": ["1x32"], "rules": CheckRules().for_seconds(61)}
    slow = make_bundle(tmp_path / "slow")
    told: list[tuple[int, int, str]] = []
    checks = []
    for seed in range(12):
        now[0] = 0.0
        runner = Clocked(slower(1.1), drift=0.0, seed=seed)
        checks.append(check(slow, bundle, TARGET, runner=runner, progress=lambda *step: told.append(step), **ask))  # type: ignore[arg-type]
    # On the limit itself each bound decides in at most 2.5 % of checks, so one of twelve may be decided before the time is up.
    timed_out = [paired for paired in checks if paired.cases[0].verdict is Verdict.INCONCLUSIVE]
    assert len(timed_out) >= 11
    # 4 s a round: the one that ends after 61 s is the last.
    assert {paired.cases[0].replicates for paired in timed_out} == {16}
    paired = timed_out[0]
    (case,) = paired.cases
    assert case.detectable is not None
    assert case.detectable > 1.1
    assert told[1][:2] == (1, 61), "progress counts seconds"
    assert "a bundle that is as fast as the baseline fails in at most 2.5% of checks" in "".join(paired.notes)
    saved = save(bundle, tmp_path / "out")
    now[0] = 0.0
    alone = check(slow, saved, TARGET, runner=Clocked(slower(1.1), drift=0.0, seed=2), **ask)  # type: ignore[arg-type]
    assert alone.cases[0].replicates == 31


def test_what_a_report_of_another_target_is_worth_is_said(bundle: Path, tmp_path: Path) -> None:
    saved = save(bundle, tmp_path / "out")
    mine = TARGET.model_copy(update={"name": "mine"})
    result = check(
        bundle, saved, mine, runner=FakeRunner(flat, drift=0.0), data={"reviews": examples(40)}, correct=rights()
    )
    assert any("measured for target linux-x64-cpu, this check is for mine" in note for note in result.notes)
    assert any("give the baseline's bundle to compare it" in note for note in result.notes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot read bench report"),
        ("[]", "not a bench report"),
        ('{"kind": "check"}', "kind 'check'"),
        ('{"kind": "bench", "schema_version": 2}', "does not fit this edgepeft: schema_version"),
    ],
)
def test_a_file_that_is_no_bench_report(bundle: Path, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        check(bundle, path, TARGET, runner=FakeRunner(flat))


# accuracy


def examples(rows: int) -> Examples:
    return Examples(texts=tuple(map(str, range(rows))), labels=("yes",) * rows)


def rights(**wrong: int):
    """Every row right but the first ``wrong[<folder name>]`` ones."""
    return lambda path, variant, adapter, rows: [i >= wrong.get(path.name, 0) for i in range(len(rows))]


def accuracy_verdicts(result: CheckResult) -> dict[str, Verdict]:
    return {gate.name: gate.verdict for gate in result.gates if gate.name.startswith("accuracy")}


@pytest.mark.parametrize(
    ("wrong", "floor", "drop"),
    [(0, "pass", "pass"), (60, "inconclusive", "fail"), (200, "fail", "fail"), (15, "pass", "inconclusive")],
)
def test_accuracy_is_judged_against_floor_and_baseline(
    bundle: Path, tmp_path: Path, wrong: int, floor: str, drop: str
) -> None:
    new = make_bundle(tmp_path / "new")
    result = check(
        new, bundle, with_floor(reviews=0.9), runner=FakeRunner(flat), variants=["fp32"],
        data={"reviews": examples(600)}, correct=rights(new=wrong),
    )  # fmt: skip
    assert accuracy_verdicts(result) == {"accuracy fp32/reviews": floor, "accuracy drop fp32/reviews": drop}
    assert result.accuracy[0].baseline_accuracy == 1.0
    assert result.accuracy[0].baseline is not None
    assert result.accuracy[0].baseline.drop == pytest.approx(wrong / 600)


def test_few_rows_cannot_rule_a_drop_out(bundle: Path) -> None:
    result = check(
        bundle, bundle, TARGET, runner=FakeRunner(flat), variants=["int8"], data={"*": examples(40)}, correct=rights()
    )
    assert set(accuracy_verdicts(result).values()) == {Verdict.INCONCLUSIVE}
    assert any("too few rows" in gate.detail for gate in result.gates)


def test_floors_without_data_are_noted_and_data_for_nobody_refused(bundle: Path) -> None:
    result = check(bundle, bundle, with_floor(reviews=0.9), runner=FakeRunner(flat))
    assert any("floors were not judged" in note for note in result.notes)
    with pytest.raises(InputError, match="'nobody', which is no adapter"):
        check(bundle, bundle, TARGET, runner=FakeRunner(flat), data={"nobody": examples(3)})


def test_answers_that_do_not_fit_the_rows(bundle: Path) -> None:
    with pytest.raises(MeasureError, match="1 answers for 3 examples"):
        check(bundle, bundle, TARGET, runner=FakeRunner(flat), data={"*": examples(3)}, correct=lambda *_: [True])


# the worker process


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    job = Job(bundle=str(tmp_path / "none"), variant="fp32", threads=1, cases=(), sampling=Sampling())
    with pytest.raises(MeasureError, match="exit code 2: BundleError: no bundle at"):
        run_worker(job)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("print('hello')", "answer is not a result: 'hello"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("import sys; print('boom', file=sys.stderr); sys.exit(5)", "exit code 5: boom"),
        ("import time; time.sleep(60)", "no result after"),
    ],
)
def test_a_broken_worker(monkeypatch: pytest.MonkeyPatch, script: str, says: str) -> None:
    run = process.run_child
    monkeypatch.setattr(process, "_TIMEOUT_S", 2)
    monkeypatch.setattr(process, "run_child", lambda command, **kw: run([sys.executable, "-c", script], **kw))
    with pytest.raises(MeasureError, match=says):
        run_worker(Job(bundle="b", variant="fp32", threads=1, cases=()))
