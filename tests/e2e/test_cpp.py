"""The C++ sample, compiled and run against the installed wheel's libonnxruntime."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from broken_numbers import break_adapter
from causal import build_causal_bundle, make_causal_bundle
from stand_in import host_target

from edgepeft import runtime
from edgepeft.bench import Job, Prompts, Rows, run_worker
from edgepeft.bundle import read_bundle
from edgepeft.data import read_examples
from edgepeft.devices import validate_on
from edgepeft.devices.executors import cpp as native
from edgepeft.devices.executors.cpp import CppExecutor
from edgepeft.devices.executors.cpp_protocol import read_answer
from edgepeft.errors import CaptureError, DeviceError, InputError
from edgepeft.pipeline import quantize, quantize_cache, remove, store_adapters
from edgepeft.report.gate import Verdict
from edgepeft.targets import Target

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> CppExecutor:
    executor = CppExecutor(host_target(tmp_path_factory.mktemp("target")))
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


def test_nan_arrives_as_failed_gates(bundle: Path, target: Target, tmp_path: Path) -> None:
    broken = break_adapter(Path(shutil.copytree(bundle, tmp_path / "broken")), "reviews")
    report = validate_on(broken, target, on="cpp", rows=3, reference=False)
    failed = {gate.name: gate.detail for gate in report.gates if gate.verdict is Verdict.FAIL}
    assert set(failed) == {"same label as native reviews fp32", "logits against native reviews fp32"}
    assert (
        "3 of 3 rows of reviews (fp32) have logits that are not finite numbers"
        in failed["logits against native reviews fp32"]
    )


def test_a_prompt_without_finite_logits_has_no_answer(cpp: CppExecutor, tmp_path: Path) -> None:
    broken = break_adapter(build_causal_bundle(tmp_path), "wide")
    prompts = tuple(
        Prompts(adapter=name, texts=("a", "the film"), max_new_tokens=3, chat=False) for name in ("wide", "narrow")
    )
    wide, narrow = cpp.run(Job(bundle=str(broken), variant="fp32", threads=1, prompts=prompts)).generated
    assert wide.tokens == ((), ())
    assert wide.not_finite == "the model's logits are not finite numbers"
    assert (all(narrow.tokens), narrow.not_finite) == (True, "")
    report = validate_on(broken, cpp._target, on="cpp", rows=1, new_tokens=3, reference=False)
    failed = {gate.name for gate in report.gates if gate.verdict is Verdict.FAIL}
    assert failed == {"tokens as native wide fp32", "answers complete wide fp32"}


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


def test_a_language_model_generates_as_in_python(generating: Path, cpp: CppExecutor) -> None:
    """The same library and tokens, so the same greedy tokens and texts; states before the sequence among the adapters."""
    names = (None, "wide", "narrow", "prefix", None)
    long = "a b c " * 18  # with 20 more of a context of 192
    asked = tuple(
        Prompts(adapter=name, texts=("good day", "Ünïcode 👍", long), max_new_tokens=20, chat=chat)
        for name in names
        for chat in (None, False)
    )
    job = Job(bundle=str(generating), variant="fp32", threads=1, prompts=asked, restore=True, swaps=7)
    result = cpp.run(job)
    native = run_worker(job)
    assert [each.tokens for each in result.generated] == [each.tokens for each in native.generated]
    assert [each.texts for each in result.generated] == [each.texts for each in native.generated]
    assert len({each.tokens for each in result.generated}) == 8, "base, three adapters, with the template and without"
    assert result.base_restored is True
    assert all(ms > 0 for each in result.generated for ms in each.prefill_ms)
    assert result.swap is not None
    assert len(result.swap.use_ms) == 7


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_adapters_in_other_forms(
    form: Literal["fp16", "int8"], bundle: Path, generating: Path, cpp: CppExecutor, tmp_path: Path
) -> None:
    """ONNX Runtime expands them; the same bits as in Python, in rows, in tokens, and after a swap back to the base."""
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    store_adapters(own, form)
    names = (None, "reviews", "movies", None)
    rows = tuple(Rows(adapter=n, texts=("the film was not very good",)) for n in names)
    result = cpp.run(Job(bundle=str(own), variant="fp32", threads=1, rows=rows, restore=True))
    model = runtime.open(own)
    for name, found in zip(names, result.rows, strict=True):
        assert np.array_equal(np.float32(found.logits), model.use(name).logits(list(rows[0].texts)))
    assert result.base_restored is True
    writer = Path(shutil.copytree(generating, tmp_path / "writer"))
    store_adapters(writer, form, ["wide"])
    store_adapters(writer, "fp16", ["prefix"])  # states have no factors to store in 8 bits
    prompts = tuple(
        Prompts(adapter=n, texts=("good day",), max_new_tokens=12, chat=False) for n in (None, "wide", "prefix")
    )
    job = Job(bundle=str(writer), variant="fp32", threads=1, prompts=prompts, restore=True)
    found, native = cpp.run(job), run_worker(job)
    assert [each.tokens for each in found.generated] == [each.tokens for each in native.generated]
    assert found.base_restored is True


def test_half_precision_generates_as_in_python(generating: Path, cpp: CppExecutor, tmp_path: Path) -> None:
    """The same library, graph and adapter files: the cache and the states before a sequence are float16 on both sides."""
    own = Path(shutil.copytree(generating, tmp_path / "own"))
    quantize(own, "fp16")
    assert read_bundle(own).manifest.variants["fp16"].cache_dtype == "float16"
    prompts = tuple(
        Prompts(adapter=name, texts=("good day", "Ünïcode 👍"), max_new_tokens=12, chat=False)
        for name in (None, "wide", "narrow", "prefix", None)
    )
    job = Job(bundle=str(own), variant="fp16", threads=1, prompts=prompts, restore=True)
    result, native = cpp.run(job), run_worker(job)
    assert [each.tokens for each in result.generated] == [each.tokens for each in native.generated]
    assert len({each.tokens for each in result.generated}) == 4
    assert result.base_restored is True


def test_a_cache_in_8_bits_generates_as_in_python(generating: Path, cpp: CppExecutor, tmp_path: Path) -> None:
    """A quarter of the bytes a place, rounded by the graph; restarted for each answer, with adapters in between."""
    own = Path(shutil.copytree(generating, tmp_path / "own"))
    remove(own, adapter="prefix")  # its states are floats
    made = quantize_cache(own, "fp32").variant
    prompts = tuple(
        Prompts(adapter=name, texts=("good day", "Ünïcode 👍"), max_new_tokens=12, chat=False)
        for name in (None, "wide", "narrow", None)
    )
    job = Job(bundle=str(own), variant=made, threads=1, prompts=prompts, restore=True)
    result, native = cpp.run(job), run_worker(job)
    assert [each.tokens for each in result.generated] == [each.tokens for each in native.generated]
    assert len({each.tokens for each in result.generated}) == 3
    assert result.base_restored is True


def test_answers_end_at_an_end_token(generating: Path, cpp: CppExecutor, tmp_path: Path) -> None:
    """A token that the model is known to choose is made its end of text: there the answer ends, that token included."""
    from edgepeft.pipeline._manifest import write_manifest

    job = Job(
        bundle=str(generating), variant="fp32", threads=1,
        prompts=(Prompts(adapter="wide", texts=("good day",), max_new_tokens=12, chat=False),),
    )  # fmt: skip
    whole = cpp.run(job).generated[0].tokens[0]
    place = next(i for i in range(2, 12) if whole[i] not in whole[:i])
    own = Path(shutil.copytree(generating, tmp_path / "own"))
    settings = json.loads((own / "generation_config.json").read_text())
    (own / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [299, whole[place]]}))
    manifest = read_bundle(generating).manifest
    write_manifest(own, manifest, {n: e for n, e in manifest.files.items() if n != "generation_config.json"})
    assert cpp.run(job.model_copy(update={"bundle": str(own)})).generated[0].tokens[0] == whole[: place + 1]


def test_a_graph_whose_cache_grows(cpp: CppExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced attention gives a longer cache back instead of writing into one."""

    def refuse(loaded: object) -> None:
        raise CaptureError("not here")

    monkeypatch.setattr("edgepeft.base.routes.mobius.build", refuse)
    folder = make_causal_bundle(tmp_path)
    assert not runtime.open(folder).generator.signature.shared
    names = (None, "wide", None)
    prompts = tuple(Prompts(adapter=name, texts=("the film was", "a"), max_new_tokens=16) for name in names)
    job = Job(bundle=str(folder), variant="fp32", threads=1, prompts=prompts, restore=True)
    result, native = cpp.run(job), run_worker(job)
    assert [each.tokens for each in result.generated] == [each.tokens for each in native.generated]
    assert result.generated[0].tokens != result.generated[1].tokens
    assert result.base_restored is True


def test_what_it_cannot_do_is_said(bundle: Path, generating: Path, cpp: CppExecutor) -> None:
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
            f"edgepeft-job 1 graph {bundle}/onnx/model.onnx prompt - 4 0 1 5",
            "generation does not know the graph's input token_type_ids",
        ),
        (f"edgepeft-job 1 graph {generating}/onnx/model.onnx prompt - 4 0 0", "the prompt has no tokens"),
        (f"edgepeft-job 1 graph {generating}/onnx/model.onnx prompt x 4 0 1 5", "no adapter 'x' was loaded"),
        (
            f"edgepeft-job 1 graph {bundle}/onnx/model.onnx adapter a {bundle}/config.json",
            "valid lora parameter format",
        ),
    ):
        done = subprocess.run([str(program)], input=said, capture_output=True, text=True)
        assert (done.returncode, expected in done.stderr) == (2, True), (said, done.stderr)
    job = job.model_copy(update={"rows": (Rows(adapter=None, texts=("a", "b")),)})
    host, opened = native.fingerprint("", 1), read_bundle(bundle)
    with pytest.raises(DeviceError, match="answer is cut off"):
        read_answer("onnxruntime 1.0\nlogits - 1 2 0 0\n", job, opened, host, "x")
    with pytest.raises(DeviceError, match="1 rows came for None, 2 were asked for"):
        read_answer("onnxruntime 1.0\nload_ms 1\nlogits - 1 2 0 0\npeak_rss_mb 1\nend\n", job, opened, host, "x")
    asked = Job(bundle=str(generating), variant="fp32", threads=1, prompts=(Prompts(adapter="wide", texts=("a", "b")),))
    with pytest.raises(DeviceError, match="1 texts came for wide, 2 were asked for"):
        read_answer(
            "onnxruntime 1.0\nload_ms 1\ntokens wide 1 1 5\npeak_rss_mb 1\nend\n",
            asked,
            read_bundle(generating),
            host,
            "x",
        )
    with pytest.raises(InputError, match="this model's context is 187 tokens beside the adapter's 5 states"):
        cpp.run(
            asked.model_copy(
                update={"prompts": (Prompts(adapter="prefix", texts=("a",), max_new_tokens=187, chat=False),)}
            )
        )


def test_doctor_without_a_compiler(cpp: CppExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "g++" in [each.what for each in cpp.missing()]
    assert shutil.which("g++") is None
    with pytest.raises(DeviceError, match="sudo apt-get install g"):
        native.build_runner()
