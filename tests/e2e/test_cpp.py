"""The C++ sample, compiled and run against the installed wheel's libonnxruntime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgepeft import runtime
from edgepeft.bench import Job, Rows
from edgepeft.data import read_examples
from edgepeft.devices import native, validate_on
from edgepeft.devices.native import CppExecutor, read_answer
from edgepeft.errors import DeviceError, InputError
from edgepeft.targets import Target, Verdict, host_machine, load_target

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> CppExecutor:
    system, arch = host_machine().split()
    file = tmp_path_factory.mktemp("target") / "mine.toml"
    file.write_text(
        f'extends = "linux-x64-cpu"\nname = "mine"\nsummary = "s"\n[machine]\nos = "{system}"\narch = "{arch}"\n'
    )
    executor = CppExecutor(load_target(file))
    if missing := executor.missing():
        pytest.skip(f"no C++ here: {missing[0].what} ({missing[0].remedy})")
    native.build_runner()
    return executor


@pytest.fixture
def target(cpp: CppExecutor) -> Target:
    return cpp._target


def test_labels_bits_and_swaps_are_those_of_python(bundle: Path, rows: Path, target: Target) -> None:
    report = validate_on(bundle, target, on="cpp", data={"reviews": read_examples(rows)}, rows=12)
    assert report.verdict is Verdict.PASS, [gate for gate in report.gates if not gate.ok]
    assert report.data["base_restored"] == {"fp32": True}
    # The same library and the same tokens: the same bits.
    assert {row["native_difference"] for row in report.data["rows"]} == {0.0}
    assert all(row["same_peft"] == row["rows"] for row in report.data["rows"])


def test_each_adapter_is_its_own(bundle: Path, cpp: CppExecutor) -> None:
    text = "the film was not very good"
    names = (None, "reviews", "movies", None)
    job = Job(
        bundle=str(bundle),
        variant="fp32",
        threads=1,
        swaps=30,
        rows=tuple(Rows(adapter=n, texts=(text,)) for n in names),
    )
    result = cpp.run(job)
    model = runtime.open(bundle)
    for name, found in zip(names, result.rows, strict=True):
        assert np.array_equal(np.float32(found.logits), model.use(name).logits([text]))
    assert result.rows[1].logits != result.rows[2].logits
    assert result.swap is not None
    assert len(result.swap.use_ms) == 30
    assert result.peak_rss_mb


def test_what_it_cannot_do_is_said(bundle: Path, cpp: CppExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(bundle=str(bundle), variant="fp32", threads=1, rows=(Rows(adapter="nobody", texts=("a",)),))
    with pytest.raises(InputError, match="no adapter 'nobody' in the bundle; it has: reviews, movies"):
        cpp.run(job)
    with pytest.raises(InputError, match="measures no latency"):
        cpp.run(Job.model_validate({**job.model_dump(), "cases": [{"adapter": None, "batch": 1, "sequence": 8}]}))
    program = native.build_runner()
    for said, expected in (
        ("", "the job ends too early"),
        ("edgepeft-job 2", "not a job of version 1"),
        ("edgepeft-job 1 graph /nowhere/model.onnx", "/nowhere/model.onnx"),
        ("edgepeft-job 1 threads 1", "the job names no graph"),
        ("edgepeft-job 1 fly", "unknown key 'fly'"),
        (f"edgepeft-job 1 graph {bundle}/onnx/model.onnx batch x 1 1 1 input_ids 5", "no adapter 'x' was loaded"),
        (
            f"edgepeft-job 1 graph {bundle}/onnx/model.onnx adapter a {bundle}/config.json",
            "valid lora parameter format",
        ),
    ):
        done = subprocess.run([str(program)], input=said, capture_output=True, text=True)
        assert (done.returncode, expected in done.stderr) == (2, True), (said, done.stderr)
    job = job.model_copy(update={"rows": (Rows(adapter=None, texts=("a", "b")),)})
    host = native.fingerprint("", 1)
    with pytest.raises(DeviceError, match="answer is cut off"):
        read_answer("onnxruntime 1.0\nlogits - 1 2 0 0\n", job, host, "x")
    with pytest.raises(DeviceError, match="1 rows came for None, 2 were asked for"):
        read_answer("onnxruntime 1.0\nload_ms 1\nlogits - 1 2 0 0\npeak_rss_mb 1\nend\n", job, host, "x")


def test_doctor_without_a_compiler(cpp: CppExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "g++" in [each.what for each in cpp.missing()]
    assert shutil.which("g++") is None
    with pytest.raises(DeviceError, match="sudo apt-get install g"):
        native.build_runner()
