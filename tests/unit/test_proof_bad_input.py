"""Wrong calls of checks and gates: each says which field differs, or which row is wrong, before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_bench_compare import TARGET, FakeRunner, flat, make_bundle, save

from edgepeft.bench import check
from edgepeft.bench.interleave import open_total
from edgepeft.bundle import MANIFEST_NAME
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.devices.validate import _not_judged
from edgepeft.errors import DataError, InputError
from edgepeft.report import write_reports
from edgepeft.report.gate import Gate, Report
from edgepeft.targets import CheckRules, GeneralizationRules


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def save_adapter(folder: Path) -> None:
    """A LoRA checkpoint of one matrix."""
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.encoder.query.lora_{}.weight"
    tensors = {name.format("A"): np.ones((2, 4), np.float32), name.format("B"): np.ones((4, 2), np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")


def test_a_label_that_the_adapter_does_not_know_is_said_before_anything_is_measured(bundle: Path) -> None:
    runner = FakeRunner(flat)
    rows = Examples(("a", "b", "c"), ("yes", "maybe", "perhaps"), source="rows.csv", lines=(2, 3, 5))
    for name in ("reviews", "*"):
        with pytest.raises(DataError, match=r"rows\.csv, line 3: label 'maybe' is not one of the adapter's: no, yes"):
            check(bundle, bundle, TARGET, data={name: rows}, runner=runner)
    assert not runner.jobs


def test_data_for_no_adapter_is_said_before_anything_is_measured(bundle: Path) -> None:
    runner = FakeRunner(flat)
    with pytest.raises(InputError, match="data was given for 'review', which is no adapter"):
        check(bundle, bundle, TARGET, data={"review": Examples(("a",), ("yes",))}, runner=runner)
    assert not runner.jobs


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("onnxruntime", "1.20.0", r"onnxruntime was '1\.20\.0', is '[^']*'"),
        ("cpu", "Another", "cpu was 'Another', is 'Test CPU'"),
        ("threads", 8, "threads was 8, is 1"),
        ("machine", "aarch64", "machine was 'aarch64', is 'x86_64'"),
    ],
)
def test_a_baseline_of_another_host_or_version_names_the_field(
    bundle: Path, tmp_path: Path, field: str, value: object, says: str
) -> None:
    saved = save(bundle, tmp_path / "out", **{field: value})
    with pytest.raises(InputError, match=f"{says}.*Latency and memory cannot be compared. Sizes can: the bundle had"):
        check(bundle, saved, TARGET, runner=FakeRunner(flat))


def test_a_baseline_with_other_weights_is_compared_and_said(bundle: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", identity="1")
    result = check(bundle, other, TARGET, runner=FakeRunner(flat, drift=0.0))
    assert any("the two bundles have different bases" in note for note in result.notes)


def test_limits_that_nothing_was_given_to_judge_by_are_named() -> None:
    target = TARGET.model_copy(
        update={"accuracy": {"reviews": 0.9}, "generalization": GeneralizationRules(max_drop=0.1)}
    )
    assert _not_judged(target, data=True, general=True) == []
    assert _not_judged(TARGET, data=False, general=False) == []
    assert _not_judged(target, data=False, general=False) == [
        "the target's accuracy floors were not judged: no --data was given",
        "the target's [generalization] limits were not judged: no --general was given",
    ]


def test_gates_on_rows_from_elsewhere_need_them(bundle: Path) -> None:
    for option in ("--max-general-drop", "--max-forgetting"):
        done = CliRunner().invoke(main, ["validate", str(bundle), option, "0.1"])
        assert done.exit_code == 2
        assert "judge rows of --general FILE, and none are given" in done.output


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[budgets]\nadapter_mb = 10\nbundle_mb = 5\n", "adapter_mb 10 is more than bundle_mb 5: a bundle holds its adapters"),
        (
            '[budgets.p50_ms]\n"1x32" = 9\n[budgets.p95_ms]\n"1x32" = 5\n',
            "p95_ms 5 for 1x32 is less than its p50_ms 9: no run can keep it",
        ),
        ("[budgets]\nrss_drift_mb = 900\npeak_rss_mb = 500\n", "rss_drift_mb 900 is more than peak_rss_mb 500"),
        ("[check]\nmin_rounds = 9\nmax_rounds = 5\n", "min_rounds 9 is more than max_rounds 5"),
    ],
)  # fmt: skip
def test_budgets_that_contradict_each_other(bundle: Path, tmp_path: Path, table: str, says: str) -> None:
    target = tmp_path / "mine.toml"
    target.write_text(f'extends = "linux-x64-cpu"\nname = "mine"\nsummary = "mine"\n{table}')
    for command in (["bench"], ["check", "--baseline", str(bundle)]):
        done = CliRunner().invoke(main, [command[0], str(bundle), *command[1:], "--target", str(target)])
        assert done.exit_code == 2
        assert says in " ".join(done.output.split())
    assert not (bundle / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "BUNDLE", "--baseline", "none"], "there is no baseline to compare with: no bundle at none"),
        (
            ["check", "BUNDLE", "--baseline", "none.json"],
            "Give the folder of a bundle, or what bench saved on this host",
        ),
        (["check", "BUNDLE", "--baseline", "EMPTY"], "is not a bundle: it holds no edgepeft.json"),
        (["check", "BUNDLE", "--baseline", "DAMAGED"], "there is no baseline to compare with: "),
        (["check", "BUNDLE", "--baseline", "http://127.0.0.1:9/x.json"], "cannot fetch the baseline"),
        (["check", "BUNDLE", "--baseline", "s3://bucket/x.json"], "is a URL"),
        (["check", "BUNDLE", "--baseline", "BUNDLE", "--target", "none.toml"], "does not exist"),
        (["check", "BUNDLE", "--baseline", "BUNDLE", "--data", "reviews=none.csv"], "cannot read data file none.csv"),
        (["check", "none", "--baseline", "BUNDLE"], "no bundle at none"),
        (["bench", "BUNDLE", "--target", "none.toml"], "does not exist"),
        (["bench", "BUNDLE", "--history", "none/runs.db"], "there is no folder none"),
        (["bench", "none"], "no bundle at none"),
        (["bench", "EMPTY"], "is not a bundle"),
        (["validate", "BUNDLE", "--data", "reviews=none.csv"], "cannot read data file none.csv"),
        (["validate", "BUNDLE", "--general", "none.csv"], "cannot read data file none.csv"),
        (
            ["validate", "BUNDLE", "--adapter", "reviews=none"],
            "--adapter reviews: there is no checkpoint to compare with",
        ),
        (
            ["validate", "BUNDLE", "--adapter", "reviews=EMPTY"],
            "--adapter reviews: there is no checkpoint to compare with",
        ),
        (
            ["validate", "BUNDLE", "--adapter", "reviews=CHECKPOINT", "--model", "./none"],
            "Say where the base is with --model",
        ),
        (["validate", "none"], "no bundle at none"),
        (["validate", "BUNDLE", "--target", "none.toml"], "does not exist"),
        (
            ["validate", "BUNDLE", "--target", "linux-x64-cpu", "--data", "reviews=none.csv"],
            "cannot read data file none.csv",
        ),
        (["validate", "BUNDLE", "--target", "linux-x64-cpu", "--adapter", "reviews=none"], "there is no checkpoint"),
        (["targets", "compare", "BUNDLE", "--data", "reviews=none.csv"], "cannot read data file none.csv"),
        (["targets", "compare", "BUNDLE", "--data", "nobody=ROWS"], "has no adapter 'nobody'"),
        (["targets", "coverage", "none"], "no bundle at none"),
    ],
)
def test_a_file_that_is_not_there_leaves_the_earlier_report(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    """Nothing is written before every file that an option names is known to be there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("edgepeft.worker.process.run_worker", lambda job: pytest.fail("something was measured"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("text,label\na,yes\n")
    damaged = make_bundle(tmp_path / "damaged")
    (damaged / MANIFEST_NAME).write_text("{}")
    if "CHECKPOINT" in " ".join(arguments):
        pytest.importorskip("torch")
        save_adapter(tmp_path / "checkpoint")
    names = {
        "BUNDLE": str(bundle),
        "EMPTY": "empty",
        "DAMAGED": "damaged",
        "ROWS": "rows.csv",
        "CHECKPOINT": "checkpoint",
    }
    given = [
        each if (name := each.rpartition("=")[2]) not in names else each.replace(name, names[name])
        for each in arguments
    ]
    earlier = Report(kind="check", title="earlier", gates=(Gate.holds("it is good", True),))
    for stem in ("check", "bench", "validate", "validate-linux-x64-cpu", "compare", "coverage"):
        write_reports(tmp_path / "out", stem, earlier)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    done = CliRunner().invoke(main, [*given, "--report", "out"])
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.output.split())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    fresh = CliRunner().invoke(main, [*given, "--report", "new"])
    assert fresh.exit_code == 2
    assert not (tmp_path / "new").exists()


def test_progress_of_a_budget_in_seconds_ends_at_its_end() -> None:
    rules = CheckRules().for_seconds(5)
    assert [open_total(9, 40_000, seconds, rules) for seconds in (0, 4.2, 7.9)] == [(0, 5), (4, 5), (5, 5)]
    assert open_total(9, 48, 100, CheckRules()) == (9, 48)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["bench", "--adapter", "reveiws"],
            "no adapter 'reveiws' in the bundle; it has: reviews, movies; did you mean 'reviews'?",
        ),
        (["bench", "--variant", "int88"], "no variant 'int88' in the bundle; it has: fp32, int8; did you mean 'int8'?"),
        (["check", "--baseline", "BUNDLE", "--adapter", "Movie"], "did you mean 'movies'?"),
        (["check", "--baseline", "BUNDLE", "--variant", "fp3"], "did you mean 'fp32'?"),
        (["check", "--baseline", "BUNDLE", "--data", "reveiws=DATA"], "which is no adapter of"),
        (["check", "--baseline", "BUNDLE", "--data", "reveiws=DATA"], "did you mean 'reviews'?"),
        (["validate", "--variant", "INT8"], "has no variant 'INT8'; it has: fp32, int8; did you mean 'int8'?"),
        (
            ["validate", "--adapter", "moveis"],
            "has no adapter 'moveis'; it has: movies, reviews; did you mean 'movies'?",
        ),
        (["validate", "--adapter", "moveis=x"], "did you mean 'movies'?"),
        (["validate", "--data", "moveis=DATA"], "did you mean 'movies'?"),
    ],
)
def test_names_that_are_nearly_right(bundle: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na,yes\n")
    given = [each.replace("BUNDLE", str(bundle)).replace("DATA", str(rows)) for each in arguments]
    done = CliRunner().invoke(main, [given[0], str(bundle), *given[1:]])
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
