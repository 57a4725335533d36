"""A history of bench runs: what is kept, what a check takes of it, and files that are none."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from test_bench_compare import HOST, TARGET, FakeRunner, flat, make_bundle, slower

from edgepeft.bench import BenchResult, bench, check
from edgepeft.bench.history import append_run, change_points, host_class, last_level, read_runs, require_history
from edgepeft.devices import bench_on, check_on
from edgepeft.errors import InputError
from edgepeft.report.gate import Verdict

ASK = {"variants": ["fp32"], "adapters": ["reviews"], "shapes": ["1x32"]}
START = datetime(2026, 11, 1, tzinfo=UTC)


def run_of(bundle: Path, seed: int, **changes: object) -> BenchResult:
    result = bench(bundle, TARGET, runner=FakeRunner(flat, drift=0.005, seed=seed), **ASK)  # type: ignore[arg-type]
    return result.model_copy(update={"host": HOST.model_copy(update=changes)})


def filled(path: Path, bundle: Path, runs: int = 6, factor: float = 1.0, before: int = 0) -> Path:
    """A history of ``before`` runs that took ``factor`` times as long, and ``runs`` of the usual speed."""
    for number in range(before + runs):
        latency = slower(factor) if number < before else flat
        result = bench(
            make_bundle(bundle.parent / f"r{number}" / ("slow" if number < before else "b")), TARGET,
            runner=FakeRunner(latency, drift=0.005, seed=number), **ASK,  # type: ignore[arg-type]
        )  # fmt: skip
        append_run(path, result, START + timedelta(days=number))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def test_runs_come_back_as_they_were_in_their_order(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    later, first = run_of(bundle, 1), run_of(bundle, 2)
    assert append_run(path, later, START + timedelta(days=1)) == 1
    assert append_run(path, first, START) == 2
    other = run_of(bundle, 3, cpu="Other CPU")
    assert append_run(path, other) == 3
    assert [run.result for run in read_runs(path)] == [first, later, other]
    assert [run.result for run in read_runs(path, HOST, TARGET.name)] == [first, later]
    assert read_runs(path, HOST, "web-wasm") == []
    assert host_class(HOST.model_copy(update={"python": "3.14.1"})) == host_class(HOST)


def test_a_history_decides_what_one_report_cannot(bundle: Path, tmp_path: Path) -> None:
    path = filled(tmp_path / "runs.db", bundle)
    verdicts = [
        check(bundle, path, TARGET, runner=FakeRunner(flat, drift=0.004, seed=seed), **ASK).verdict  # type: ignore[arg-type]
        for seed in range(20)
    ]
    assert verdicts.count(Verdict.PASS) >= 18
    assert Verdict.FAIL not in verdicts
    slow = make_bundle(tmp_path / "slow")
    result = check(slow, path, TARGET, runner=FakeRunner(slower(1.25), drift=0.004), **ASK)  # type: ignore[arg-type]
    assert result.verdict is Verdict.FAIL
    assert any("the median of the last 6 of 6 runs" in note for note in result.notes)
    assert not result.paired


def test_runs_before_a_change_of_level_are_left_out(bundle: Path, tmp_path: Path) -> None:
    path = filled(tmp_path / "runs.db", bundle, runs=8, factor=1.5, before=8)
    result = check(bundle, path, TARGET, runner=FakeRunner(flat, drift=0.004), **ASK)  # type: ignore[arg-type]
    assert result.cases[0].ratio == pytest.approx(1.0, abs=0.04), "the ten last runs would have two of the slow ones"
    (said,) = [note for note in result.notes if "Pettitt" in note]
    assert "the median of the last 8 of 16 runs" in said
    assert "changed its level at run 9" in said


def test_too_few_runs_of_this_host_are_refused(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    for seed in range(4):
        append_run(path, run_of(bundle, seed, **({"cpu": "Other CPU"} if seed < 2 else {})))
    with pytest.raises(
        InputError,
        match=r"has 2 of at least 3 runs for linux-x64-cpu on hosts like this \(Test CPU, .* and 2 of other hosts",
    ):
        check(bundle, path, TARGET, runner=FakeRunner(flat), **ASK)  # type: ignore[arg-type]


def test_files_that_are_no_history(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("mine")
    with pytest.raises(InputError, match="is no history of edgepeft: choose another file"):
        append_run(text, run_of(bundle, 1))
    assert text.read_text() == "mine"
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    with pytest.raises(InputError, match="an SQLite file of something else"):
        append_run(foreign, run_of(bundle, 1))
    broken = filled(tmp_path / "runs.db", bundle, runs=3)
    raw = bytearray(broken.read_bytes())
    raw[100:3000] = b"\xff" * 2900
    broken.write_bytes(raw)
    with pytest.raises(InputError, match=r"history .*runs\.db cannot be used .*Move it away to begin a new one"):
        check(bundle, broken, TARGET, runner=FakeRunner(flat), **ASK)  # type: ignore[arg-type]
    odd = filled(tmp_path / "odd.db", bundle, runs=3)
    with sqlite3.connect(odd) as database:
        database.execute("UPDATE runs SET result = '{}' WHERE id = 2")
    database.close()
    with pytest.raises(InputError, match="run 2 does not fit this edgepeft"):
        read_runs(odd)


def test_a_change_is_found_where_it_is_and_noise_has_none() -> None:
    rng = np.random.default_rng(0)
    moved = [*rng.normal(10, 0.2, 15), *rng.normal(11, 0.2, 15)]
    assert change_points(moved) == (15,)
    twice = [*rng.normal(10, 0.2, 20), *rng.normal(12, 0.2, 20), *rng.normal(10, 0.2, 20)]
    assert set(change_points(twice)) == {20, 40}
    wild = [10.0, 10.1, 9.9, 10.0, 40.0, 10.0, 10.1, 9.9, 10.1, 10.0]
    assert change_points(wild) == ()
    alarms = sum(bool(change_points(rng.normal(10, 0.2, 20))) for _ in range(300))
    assert alarms <= 9  # 1 %, and its approximation is on the safe side
    assert last_level(moved) == slice(20, 30)
    assert last_level([5.0] * 4) == slice(0, 4)


@pytest.mark.parametrize("url", ["https://ci.example/runs.db", "s3:/bucket/runs.db", "postgresql://host/runs"])
def test_a_url_is_refused_before_anything_is_measured(bundle: Path, url: str) -> None:
    for call in (
        lambda: require_history(Path(url)),
        lambda: append_run(url, run_of(bundle, 1)),
        lambda: bench_on(bundle, TARGET, history=Path(url)),
        lambda: check_on(bundle, Path(url), TARGET),
    ):
        with pytest.raises(
            InputError,
            match=r"runs(\.db)? is a URL, and a history or baseline is a file on this machine; only check reads",
        ):
            call()


def test_a_history_that_cannot_be_added_to_is_refused_before_anything_is_measured(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepeft.devices.measure.bench", lambda *a, **o: pytest.fail("it was measured"))
    (tmp_path / "notes.db").write_text("mine")
    damaged = filled(tmp_path / "runs.db", bundle, runs=3)
    damaged.write_bytes(damaged.read_bytes()[:100] + b"\xff" * 3000)
    for path, said in (
        (tmp_path / "notes.db", "is no history of edgepeft: choose another file"),
        (damaged, "cannot be used .*Move it away to begin a new one"),
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "no" / "runs.db", "there is no folder .*no; make it first"),
    ):
        with pytest.raises(InputError, match=said):
            bench_on(bundle, TARGET, history=path)
    empty = tmp_path / "empty.db"
    empty.touch()
    require_history(empty)
