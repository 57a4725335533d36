"""The command line as a user meets it: whole flows, what is printed where, exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from edgepeft.targets import host_machine

pytestmark = pytest.mark.e2e

COMMANDS = [
    "train",
    "tune",
    "search",
    "export",
    "add",
    "quantize",
    "run",
    "inspect",
    "validate",
    "bench",
    "check",
    "targets",
    "web",
    "demo",
]

#: A target with a sampling that fits a test: three rounds, and budgets that any machine keeps.
TARGET = """
name = "tiny"
summary = "A test's target"
extends = "linux-x64-cpu"

[budgets]
swap_ms = 1000
load_ms = 60000
peak_rss_mb = 4000
rss_drift_mb = 100
bundle_mb = 250
adapter_mb = 5

[budgets.p50_ms]
"1x8" = 10000

[check]
min_rounds = 3
max_rounds = 3
max_seconds = 60
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TARGET)
    return path


def good(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def reports(folder: Path, stem: str) -> dict[str, Any]:
    """The three report files, which must agree on every gate."""
    report: dict[str, Any] = json.loads((folder / f"{stem}.json").read_text())
    markdown = (folder / f"{stem}.md").read_text()
    suite = ET.parse(folder / f"{stem}.junit.xml").getroot()
    names = [gate["name"] for gate in report["gates"]]
    assert [case.get("name") for case in suite.iter("testcase")] == names
    assert all(name.replace("|", "\\|") in markdown for name in names)
    verdicts = [gate["verdict"] for gate in report["gates"]]
    assert (suite.get("failures"), suite.get("skipped")) == (
        str(verdicts.count("fail")),
        str(verdicts.count("inconclusive")),
    )
    assert report["verdict"] in markdown
    return report


def test_help_lists_every_command_with_a_whole_sentence(cli: Any) -> None:
    text = good(cli("--help")).stdout
    for name in COMMANDS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith("."), line
        assert "..." not in line
        assert "Usage: " in good(cli(name, "--help")).stdout
    assert "Adapter:" in cli("train", "--help").stdout
    assert "[default: 8]" in cli("train", "--help").stdout


def test_train_export_add_quantize_validate_run_inspect(
    cli: Any, encoder: Path, adapters: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    trained, out = tmp_path / "trained", tmp_path / "bundle"
    done = good(cli("train", "--model", encoder, "--data", rows, "--out", trained, "--epochs", 1, "--json"))
    assert json.loads(done.stdout)["labels"] == ["bad", "good"]

    done = good(
        cli("export", "--model", encoder, "--adapter", f"mine={trained}", "--slots", "all-linear", "--out", out)
    )
    assert "capturing" in done.stderr
    assert "Parity with PEFT" in done.stdout
    assert str(out) in done.stdout

    done = good(cli("add", out, "--adapter", f"register={adapters['register']}", "--json"))
    assert json.loads(done.stdout)["labels"] == ["book", "film", "plot"]
    good(cli("add", out, "--adapter", f"again={out}/adapters/register.onnx_adapter"))
    good(cli("add", out, "--adapter", f"again={out}/adapters/register.onnx", "--replace"))

    done = good(cli("quantize", out, "--variant", "int8", "--json"))
    assert 0 < json.loads(done.stdout)["share"] <= 1

    done = good(cli("quantize", out, "--variant", "w8a16", "--data", f"*={rows}", "--rows", 6))
    assert "measuring activations of mine on 6 texts" in done.stderr
    assert "w8a16 holds" in done.stdout
    assert (out / "onnx" / "model_w8a16.onnx").is_file()

    done = cli("validate", out, "--data", f"mine={rows}", "--max-drop", 1, "--json")
    report = json.loads(good(done).stdout)
    assert report == reports(out / "report", "validate")
    assert {row["variant"] for row in report["data"]["accuracy"]} == {"fp32", "int8", "w8a16"}
    assert [p["adapter"] for p in report["data"]["parity"]] == ["mine", "register", "again"]

    found = {
        (adapter, variant): json.loads(
            good(cli("run", out, "a good film", "--adapter", adapter, "--variant", variant, "--json")).stdout
        )[0]
        for adapter in ("mine", "register")
        for variant in ("fp32", "int8")
    }
    for (adapter, variant), row in found.items():
        assert row["adapter"] == adapter
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)  # rounding of a softmax in float64
        # int8 of a tiny random model moves probabilities; 0.2 says that both ran the same adapter, not how well.
        assert row["probabilities"] == pytest.approx(found[adapter, "fp32"]["probabilities"], abs=0.2), variant

    shown = json.loads(good(cli("inspect", out, "--json")).stdout)
    assert list(shown["adapters"]) == ["mine", "register", "again"]
    text = good(cli("inspect", out)).stdout
    assert "all " in text
    assert "files verified" in text
    assert "int8" in text
    for path in (trained, out / "adapters/mine.onnx", out / "adapters/mine.onnx_adapter"):
        assert "tensors" in json.loads(good(cli("inspect", path, "--json")).stdout)
        assert ("LowRank" if path == trained else "shape") in good(cli("inspect", path)).stdout
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_merge_with_one_and_with_three_adapters(
    cli: Any, encoder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    pairs = [f"--adapter={name}={path}" for name, path in adapters.items()]
    good(cli("export", "--model", encoder, pairs[0], "--mode", "merge", "--out", one))
    done = good(cli("export", "--model", encoder, *pairs, "--mode", "merge", "--out", three, "--json"))
    assert json.loads(done.stdout)["bundles"] == [str(three / name) for name in adapters]
    assert sorted(p.name for p in three.iterdir()) == sorted(adapters)
    single, same = (json.loads(good(cli("run", b, "a bad plot", "--json")).stdout) for b in (one, three / "reviews"))
    assert single == same
    assert good(cli("run", three / "register", "x", "--adapter", "register")).stdout.startswith(
        ("book", "film", "plot")
    )
    for arguments in (["--adapter", "movies"], ["--adapter", "register", "--scale", "2"]):
        done = cli("run", three / "register", "x", *arguments)
        assert done.exit_code == 2
        assert "merged with 'register'" in done.stderr
    done = cli("add", one, "--adapter", f"movies={adapters['movies']}")
    assert done.exit_code == 2
    assert "--mode swap" in done.stderr
    done = good(cli("validate", one, "--adapter", f"reviews={adapters['reviews']}"))
    assert "parity reviews" in done.stdout
    assert "not compared with PEFT: reviews" in good(cli("validate", one)).stdout


def test_bench_and_check_write_reports_that_agree(cli: Any, bundle: Path, rows: Path, target: Path) -> None:
    done = cli("bench", bundle, "--target", target, "--shape", "1x8", "--processes", 2, "--adapter", "reviews")
    assert done.exit_code == 0, done.output
    assert "[1/2]" in done.stderr
    assert "p50 ms" in done.stdout
    assert "verdict: pass" in done.stdout
    assert reports(bundle / "report", "bench")["verdict"] == "pass"
    first = (bundle / "report/bench.json").read_bytes()

    done = cli(
        "check", bundle, "--baseline", bundle, "--target", target, "--shape", "1x8", "--adapter", "reviews",
        "--data", f"reviews={rows}",
        "--json",
    )  # fmt: skip
    report = reports(bundle / "report", "check")
    assert json.loads(done.stdout) == report
    # Three rounds of a bundle against itself: too few to decide, and never a reason to fail.
    assert done.exit_code in {0, 3}
    assert done.exit_code == {"pass": 0, "inconclusive": 3}[report["verdict"]]

    elsewhere = bundle.parent / "elsewhere"
    done = cli(
        "bench", bundle, "--target", target, "--shape", "1x8", "--processes", 2, "--adapter", "reviews", "--report", elsewhere,
        "--json",
    )  # fmt: skip
    assert json.loads(done.stdout) == reports(elsewhere, "bench")
    assert (bundle / "report/bench.json").read_bytes() == first
    done = cli(
        "check",
        bundle,
        "--baseline",
        elsewhere / "bench.json",
        "--target",
        target,
        "--shape",
        "1x8",
        "--adapter",
        "reviews",
    )
    assert done.exit_code in {0, 1, 3}
    # Reports are no part of what is verified, so they may be written any time.
    assert cli("inspect", bundle).exit_code == 0


def test_a_missed_budget_fails_and_says_why(cli: Any, bundle: Path, target: Path) -> None:
    target.write_text(TARGET.replace('"1x8" = 10000', '"1x8" = 0.000001'))
    done = cli(
        "bench",
        bundle,
        "--target",
        target,
        "--shape",
        "1x8",
        "--processes",
        2,
        "--adapter",
        "movies",
        "--variant",
        "fp32",
    )
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("fail") and "p50 fp32/movies 1x8" in line and "1e-06" in line for line in lines)
    assert any(line.startswith("fail: p50 fp32/movies 1x8: median of 2 processes") for line in lines)
    suite = ET.parse(bundle / "report/bench.junit.xml").getroot()
    assert len(list(suite.iter("failure"))) == 1


def test_export_replaces_a_bundle(cli: Any, encoder: Path, adapters: dict[str, Path], bundle: Path) -> None:
    (bundle / "report").mkdir(exist_ok=True)
    good(cli("export", "--model", encoder, f"--adapter=register={adapters['register']}", "--out", bundle))
    assert sorted(p.name for p in (bundle / "adapters").iterdir()) == ["register.onnx", "register.onnx_adapter"]
    assert not (bundle / "report").exists()  # what was measured was another bundle
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_run_texts_of_every_kind(cli: Any, bundle: Path, tmp_path: Path) -> None:
    emoji, empty, long = "good 😀 \u2028 film", "", "good " * 500
    done = good(cli("run", bundle, emoji, empty, long, "--adapter", "reviews", "--json"))
    rows = json.loads(done.stdout)
    assert [row["text"] for row in rows] == [emoji, empty, long]
    assert "1 of 3 texts were cut to 32 tokens, the first is text 3" in done.stderr

    piped = good(cli("run", bundle, "--file", "-", "--adapter", "reviews", stdin=f"{emoji}\r\n{empty}\n{long}\n"))
    lines = piped.stdout.removesuffix("\n").split("\n")
    assert [line.split()[0] for line in lines] == [row["label"] for row in rows]
    assert "cut to 32 tokens" in piped.stderr

    (tmp_path / "pairs.csv").write_text("a,b\ngood film,bad book\n")
    done = good(
        cli(
            "run",
            bundle,
            "--file",
            tmp_path / "pairs.csv",
            "--text",
            "a",
            "--pair",
            "b",
            "--adapter",
            "reviews",
            "--json",
        )
    )
    pair = json.loads(done.stdout)[0]
    alone = json.loads(good(cli("run", bundle, "good film", "--adapter", "reviews", "--json")).stdout)[0]
    assert (pair["text"], pair["pair"]) == ("good film", "bad book")
    assert pair["probabilities"] != alone["probabilities"]

    done = good(cli("run", bundle, "x"))
    assert "no trained head" in done.stderr
    assert "reviews, movies" in done.stderr


def test_targets_and_schema(cli: Any) -> None:
    listed = {t["name"]: t for t in json.loads(good(cli("targets", "list", "--json")).stdout)}
    assert len(listed) == 11
    assert listed["android-nnapi"]["status"] == "deprecated"
    assert not listed["ios-coreml"]["executes"]
    assert "linux-x64-cpu" in good(cli("targets", "list")).stdout
    shown = good(cli("targets", "show", "linux-x64-cpu")).stdout
    assert "budgets.p50_ms.1x128" in shown
    assert json.loads(good(cli("targets", "show", "linux-x64-cpu", "--json")).stdout)["runtime"]["threads"] == 1
    assert json.loads(good(cli("inspect", "--schema")).stdout)["title"] == "Manifest"


def test_validate_and_bench_for_a_target_that_nothing_executes(cli: Any, bundle: Path, rows: Path) -> None:
    done = cli("validate", bundle, "--target", "ios-coreml", "--data", f"reviews={rows}")
    assert done.exit_code == 3, done.output
    assert "static only, nothing was executed: there is no executor for ios-coreml" in done.stdout
    assert (bundle / "report" / "validate-ios-coreml.junit.xml").is_file()
    assert cli("bench", bundle, "--target", "ios-coreml").exit_code == 3
    assert cli("check", bundle, "--baseline", bundle, "--target", "ios-coreml").exit_code == 3
    doctor = cli("targets", "doctor", "ios-coreml")
    assert (doctor.exit_code, "static only" in doctor.stdout) == (1, True)
    assert "note: Google deprecated" in cli("targets", "doctor", "android-nnapi").stdout
    assert json.loads(cli("targets", "doctor", "ios-coreml", "--json").stdout)["ready"] is False
    lone = cli("validate", bundle, "--on", "local")
    assert (lone.exit_code, "go with --target" in lone.stderr) == (2, True)


def test_validate_on_this_machine(cli: Any, bundle: Path, rows: Path, tmp_path: Path) -> None:
    os, arch = host_machine().split()
    mine = tmp_path / "mine.toml"
    mine.write_text(
        f'extends = "linux-x64-cpu"\nname = "mine"\nsummary = "s"\n[machine]\nos = "{os}"\narch = "{arch}"\n'
    )
    done = good(cli("validate", bundle, "--target", mine, "--data", f"reviews={rows}", "--rows", 6, "--json"))
    report = json.loads(done.stdout)
    assert report["verdict"] == "pass"
    assert {row["adapter"]: row["rows"] for row in report["data"]["rows"]}["reviews"] == 6
    assert "running 12 rows on local" in done.stderr  # 6 of reviews, 6 fixed sentences for movies without data


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_module_and_pipe(exported: Path, encoding: str) -> None:
    """``python -m edgepeft`` into a pipe: nothing cut, nothing coloured, also where the pipe has another encoding."""
    done = subprocess.run(
        [sys.executable, "-m", "edgepeft", "inspect", str(exported)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "40"},
        check=True,
    )
    text = done.stdout.decode(encoding)
    assert done.stderr == b""
    assert "\x1b" not in text
    assert any("reviews" in line and "bad, good" in line for line in text.splitlines())


def test_the_device_part_runs_without_the_extras(exported: Path, rows: Path, tmp_path: Path) -> None:
    """As after ``pip install edgepeft``: what no base dependency brings cannot be imported."""
    code = (
        "import sys; blocked = 'torch transformers peft onnx onnx_ir onnxscript optimum safetensors ml_dtypes'.split();"
        "sys.modules.update(dict.fromkeys(blocked)); from edgepeft.cli import main; main(prog_name='edgepeft')"
    )

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    for arguments in (
        ["run", exported, "a good film", "--adapter", "reviews"],
        ["inspect", exported / "adapters/reviews.onnx_adapter"],
        ["validate", exported, "--no-reference", "--data", f"reviews={rows}", "--report", tmp_path],
        ["targets", "list"],
    ):
        done = run(*arguments)
        assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    for extra, arguments in (
        ("export", ["export", "--model", "x", "--out", "y"]),
        ("train", ["train", "--model", "x", "--data", rows, "--out", "y"]),
        ("tools", ["quantize", exported, "--variant", "int8"]),
        ("export", ["validate", exported]),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert f"pip install 'edgepeft[{extra}]'" in done.stderr


def test_a_closed_pipe_is_not_a_failed_gate(exported: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgepeft", "inspect", "--schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_bugs_and_interrupts_have_codes_of_their_own(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgepeft.targets
    from edgepeft.cli import main

    def raising(error: BaseException) -> None:
        def replacement() -> None:
            raise error

        monkeypatch.setattr(edgepeft.targets, "list_targets", replacement)

    raising(KeyboardInterrupt())
    assert cli("targets", "list").exit_code == 130
    raising(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    done = cli("targets", "list")
    assert done.exit_code == 2
    assert "pip install 'edgepeft[export]'" in done.stderr
    raising(PermissionError(13, "Permission denied", "/etc/shadow"))
    done = cli("targets", "list", "--json")
    assert (done.exit_code, json.loads(done.stdout)["error"]) == (2, "/etc/shadow: Permission denied")
    raising(ZeroDivisionError("x"))
    from click.testing import CliRunner

    done = CliRunner().invoke(main, ["targets", "list"])
    assert done.exit_code == 70
    assert "Traceback" in done.stderr
    assert "a bug in edgepeft" in done.stderr


def test_tables_and_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 40 columns: texts fold, numbers do not; steps that are done stay on the screen."""
    from edgepeft.cli import show

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    show.table("Title", ("name", "ms"), [("a long name that folds " * 3, 0.00052), ("b", 12345.6), ("c", None)])
    with show.steps() as announce:
        announce("first [1/2]")
        announce("second")
    with show.bar() as step:
        step(1, 2, "third")
    text = click.unstyle(out.getvalue())
    assert max(len(line) for line in text.splitlines()) <= 40
    assert "0.00052" in text
    assert "12,346" in text
    assert "first [1/2]" in err.getvalue()
    assert "second" in err.getvalue()
