"""Outputs that are NaN or infinite: each door says so as a failed gate or a typed error, and no old "pass" stays.

The bundles hold an adapter of NaN under hashes that are right, as a broken training and a careless tool would leave them:
nothing but the numbers is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_numbers import break_adapter
from causal import build_causal_bundle
from click.testing import CliRunner, Result
from stand_in import Device, host_target

from edgepeft import runtime
from edgepeft.bench import Case, Job, Prompts, Rows, Sampling, check, run_worker
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.devices import bench_on, check_on, validate_on
from edgepeft.errors import InputError, NonFiniteError
from edgepeft.pipeline import quantize
from edgepeft.report import to_json
from edgepeft.report.gate import Report, Verdict
from edgepeft.targets import Target
from edgepeft.validate import validate

QUICK = Sampling(warmup_s=0.0, measure_s=0.01, min_iterations=6)
TEXTS = ("a good film", "the plot was not very good", "awful", "fine , a great end .")


@pytest.fixture
def broken(own_bundle: Path) -> Path:
    return break_adapter(own_bundle, "plain")


@pytest.fixture(scope="module")
def broken_causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return break_adapter(build_causal_bundle(tmp_path_factory.mktemp("causal")), "wide")


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return host_target(tmp_path)


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def failed(report: Report) -> dict[str, str]:
    return {gate.name: gate.detail for gate in report.gates if gate.verdict is Verdict.FAIL}


def strict(text: str) -> Any:
    """JSON as the standard has it: Python's reader takes NaN, which nobody else's does."""

    def refuse(word: str) -> None:
        raise AssertionError(f"not JSON: {word}")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_validate_fails_and_replaces_the_earlier_report(own_bundle: Path, number: float) -> None:
    assert command("validate", own_bundle, "--no-reference").exit_code == 0
    report = own_bundle / "report" / "validate.json"
    assert strict(report.read_text("utf-8"))["verdict"] == "pass"
    break_adapter(own_bundle, "plain", number)
    done = command("validate", own_bundle, "--no-reference")
    assert done.exit_code == 1, done.output
    assert "finite outputs plain fp32" in done.output
    written = strict(report.read_text("utf-8"))
    assert written["verdict"] == "fail"
    (gate,) = (gate for gate in written["gates"] if gate["verdict"] == "fail")
    assert gate["name"] == "finite outputs plain fp32"
    assert "numbers of output logits are not finite" in gate["detail"]
    assert 'failures="1"' in (own_bundle / "report" / "validate.junit.xml").read_text("utf-8")


def test_every_variant_that_is_asked_for_is_looked_at(own_bundle: Path) -> None:
    quantize(own_bundle, "int8")
    result = validate(break_adapter(own_bundle, "dora"), reference=False)
    assert [problem.partition(":")[0] for problem in result.problems] == [
        "finite outputs dora fp32",
        "finite outputs dora int8",
    ]
    alone = validate(own_bundle, reference=False, variants=["int8"])
    assert [gate.name for gate in alone.gates if not gate.ok] == ["finite outputs dora int8"]
    with pytest.raises(InputError, match="has no variant 'q4'; it has: fp32, int8"):
        validate(own_bundle, reference=False, variants=["q4"])


def test_parity_and_accuracy_fail_on_the_broken_adapter_alone(own_bundle: Path, checkpoints: dict[str, Path]) -> None:
    data = {"head": Examples(texts=TEXTS, labels=("a", "a", "a", "b"), source="rows.csv")}
    sources = {name: checkpoints[name] for name in ("plain", "head", "dora")}
    result = validate(break_adapter(own_bundle, "head"), adapters=sources, data=data)
    gates = {gate.name: gate for gate in result.gates}
    assert not result.passed
    assert {name for name, gate in gates.items() if not gate.ok} == {
        "parity head", "accuracy head fp32", "same label as PEFT head", "finite outputs head fp32",
    }  # fmt: skip
    assert "ONNX Runtime (fp32)" in gates["parity head"].detail
    assert "PEFT" not in gates["parity head"].detail
    assert gates["accuracy head fp32"].detail == "4 of 4 rows of head (fp32) have logits that are not finite numbers"
    assert result.accuracy[0].hits == 0, "argmax gives the place of a NaN, the first label here"
    assert gates["base restored bit for bit"].ok
    assert strict(json.dumps(result.as_dict(), allow_nan=False))["parity"][1]["max_difference"] == "Infinity"


@pytest.mark.parametrize("as_json", [False, True])
def test_run_refuses_to_call_nan_a_label(broken: Path, as_json: bool) -> None:
    done = command("run", broken, "--adapter", "plain", "good", *(["--json"] if as_json else []))
    assert done.exit_code == 2
    message = "adapter 'plain' in variant fp32 gives"
    assert message in done.output
    if as_json:
        said = strict(done.stdout)
        assert (said["type"], message in said["error"]) == ("NonFiniteError", True)
    assert command("run", broken, "--adapter", "dora", "good").exit_code == 0


def test_predict_raises_and_logits_are_given_as_they_are(broken: Path) -> None:
    model = runtime.open(broken).use("plain")
    assert not np.isfinite(model.logits(TEXTS)).any()
    with pytest.raises(
        NonFiniteError, match=r"adapter 'plain' in variant fp32 gives 12 of 12 numbers of output logits"
    ):
        model.predict(TEXTS)


def test_generation_names_adapter_and_variant(broken_causal: Path) -> None:
    model = runtime.open(broken_causal).use("wide")
    for answer in (
        lambda: model.generate("the film was", chat=False),
        lambda: list(model.stream("the film was", chat=False)),
        lambda: model.conversation().generate("the film was", chat=False),
    ):
        with pytest.raises(NonFiniteError, match=r"adapter 'wide' in variant fp32 gives next-token logits"):
            answer()
    done = command("run", broken_causal, "--adapter", "wide", "--raw", "the film was")
    assert (done.exit_code, "adapter 'wide' in variant fp32" in done.output) == (2, True)
    assert model.use("narrow").generate("the film was", chat=False, max_new_tokens=2).tokens


def test_a_worker_brings_nan_back_as_numbers(broken: Path) -> None:
    job = Job(
        bundle=str(broken), variant="fp32", threads=1, sampling=QUICK, restore=True,
        rows=(Rows(adapter="plain", texts=TEXTS), Rows(adapter="dora", texts=TEXTS)),
        cases=(Case(adapter="plain", batch=1, sequence=8), Case(adapter="dora", batch=1, sequence=8)),
    )  # fmt: skip
    result = run_worker(job)
    nan, fine = (np.array(rows.logits) for rows in result.rows)
    assert np.isnan(nan).all()
    assert np.isfinite(fine).all()
    assert result.base_restored, "a NaN is the NaN that was there before"
    assert [bool(case.not_finite) for case in result.cases] == [True, False]
    assert "NaN" in strict(result.model_dump_json())["rows"][0]["logits"][0]


def test_a_worker_brings_prompts_back_that_have_no_answer(broken_causal: Path) -> None:
    job = Job(
        bundle=str(broken_causal), variant="fp32", threads=1,
        prompts=(Prompts(adapter="wide", texts=("a", "b"), chat=False), Prompts(adapter="narrow", texts=("a",), chat=False)),
    )  # fmt: skip
    wide, narrow = run_worker(job).generated
    assert wide.tokens == ((), ())
    assert "adapter 'wide' in variant fp32" in wide.not_finite
    assert narrow.tokens[0]
    assert not narrow.not_finite


def test_a_device_fails_by_gates_and_does_not_crash(broken: Path, target: Target) -> None:
    data = {"plain": Examples(texts=TEXTS, labels=("LABEL_0", "LABEL_1") * 2)}
    report = validate_on(broken, target, data=data, reference=False)
    bad = failed(report)
    assert {"same label as native plain fp32", "logits against native plain fp32"} == set(bad)
    assert "4 of 4 rows of plain (fp32)" in bad["same label as native plain fp32"]
    assert "not a finite number" in bad["logits against native plain fp32"]
    row = next(row for row in strict(to_json(report))["data"]["rows"] if row["adapter"] == "plain")
    assert (row["hits"], row["same_native"], row["native_difference"]) == (0, 0, "NaN")


def test_a_device_that_generates_fails_by_gates(broken_causal: Path, target: Target) -> None:
    report = validate_on(broken_causal, target, reference=False, new_tokens=3, rows=1)
    assert set(failed(report)) == {"tokens as native wide fp32", "answers complete wide fp32"}
    assert "adapter 'wide' in variant fp32" in failed(report)["tokens as native wide fp32"]


def test_an_emulated_device_fails_by_gates(broken: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(emulated=True)
    monkeypatch.setattr("edgepeft.devices.place.executor_for", lambda target, address=None: device)
    assert set(failed(bench_on(broken, target, shapes=["1x8"]))) == {"finite outputs plain fp32"}


def test_bench_and_check_fail_on_a_broken_model(broken: Path, bundle: Path, target: Target) -> None:
    measured = bench_on(broken, target, adapters=["plain", "dora"], shapes=["1x8"], processes=2)
    assert {name for name in failed(measured) if name.startswith("finite")} == {"finite outputs fp32/plain 1x8"}
    labels = ("LABEL_0", "LABEL_1") * 2
    rules = target.check.model_copy(update={"min_rounds": 2, "max_rounds": 2})
    result = check(
        broken, bundle, target, adapters=["plain"], shapes=["1x8"], rules=rules, sampling=QUICK,
        data={"plain": Examples(texts=TEXTS, labels=labels)},
    )  # fmt: skip
    names = {gate.name: gate.verdict for gate in result.gates if gate.name.startswith("finite")}
    assert names == {"finite outputs fp32/plain 1x8": Verdict.FAIL, "finite outputs fp32/plain": Verdict.FAIL}
    assert (result.verdict, result.accuracy[0].not_finite, result.accuracy[0].hits) == (Verdict.FAIL, 4, 0)


def test_check_on_an_executor_counts_nan_as_no_answer(broken: Path, bundle: Path, target: Target) -> None:
    target = target.model_copy(update={"check": target.check.model_copy(update={"min_rounds": 2, "max_rounds": 2})})
    data = {"plain": Examples(texts=TEXTS, labels=("LABEL_0", "LABEL_1") * 2)}
    report = check_on(broken, bundle, target, adapters=["plain"], shapes=["1x8"], sampling=QUICK, data=data)
    assert failed(report)["finite outputs fp32/plain"].startswith("4 of 4 rows of plain (fp32)")


@pytest.mark.parametrize("task", ["feature-extraction", "token-classification", "fill-mask"])
def test_other_tasks_refuse_nan(task: str, models: Any, bases: Any, tmp_path: Path) -> None:
    from conftest import save_lora

    from edgepeft.pipeline import add_slots, read_adapter, write_bundle

    base = bases("bert", task)
    checkpoint = save_lora(tmp_path / "lora", models("bert", task), task=task)
    adapter = read_adapter(checkpoint, name="one", weights=base.weight)
    folder = write_bundle(tmp_path / "bundle", base, add_slots(base, [adapter]), [adapter]).path
    text = "a [MASK] film" if task == "fill-mask" else "a good film"
    assert command("run", folder, "--adapter", "one", text).exit_code == 0
    done = command("run", break_adapter(folder, "one"), "--adapter", "one", text, "--json")
    assert (done.exit_code, strict(done.stdout)["type"]) == (2, "NonFiniteError")


def test_a_measurement_that_breaks_replaces_the_earlier_report(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = own_bundle / "report" / "validate.json"
    assert command("validate", own_bundle, "--no-reference").exit_code == 0
    before = report.read_bytes()
    assert command("validate", own_bundle, "--no-reference", "--variant", "none").exit_code == 2
    assert report.read_bytes() == before, "a wrong call says nothing about the bundle"

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("edgepeft.validate.run.base_restored", broken)
    assert command("validate", own_bundle, "--no-reference").exit_code == 70
    said = strict(report.read_text("utf-8"))
    assert (said["verdict"], said["kind"]) == ("fail", "validate")
    assert "RuntimeError: out of memory" in said["gates"][0]["detail"]
