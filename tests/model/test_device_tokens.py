"""validate --target of language models: what it compares, with executors that misbehave on purpose.

Reference: a native run of the same variant and PEFT fp32, given the device's own tokens. Tolerance: 2e-4 of the largest logit,
twice the parity tolerance, since each of two logits may be off by it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from stand_in import Device, host_target

from edgepeft.bench import Job, Prompts, WorkerResult, run_worker
from edgepeft.data import Examples, PromptRows
from edgepeft.devices import bench_on, check_on, compare_targets, find_place, validate_on
from edgepeft.devices.checks.generation import LEAD, follow
from edgepeft.devices.executors.qnn import QnnExecutor
from edgepeft.errors import DeviceError, InputError, TargetError
from edgepeft.report import Partial
from edgepeft.report.gate import Report, Verdict
from edgepeft.targets import Target, load_target

PROMPTS = PromptRows(("the film was", "naïve café", "a"), chat=False)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("causal"))


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return host_target(tmp_path)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Device], Device]:
    def put(device: Device) -> Device:
        monkeypatch.setattr("edgepeft.devices.place.executor_for", lambda target, address=None: device)
        return device

    return put


def verdicts(report: Report) -> dict[str, str]:
    return {gate.name: gate.verdict.value for gate in report.gates}


def validate(bundle: Path, target: Target, **options: Any) -> Report:
    return validate_on(bundle, target, **{"data": {"*": PROMPTS}, "new_tokens": 8, "reference": False, **options})


def changed(
    result: WorkerResult, adapter: str | None, tokens: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> WorkerResult:
    """The first answer of ``adapter`` as ``tokens`` makes it."""
    generated = list(result.generated)
    place = next(i for i, each in enumerate(generated) if each.adapter == adapter)
    each = generated[place]
    generated[place] = each.model_copy(update={"tokens": (tokens(each.tokens[0]), *each.tokens[1:])})
    return result.model_copy(update={"generated": tuple(generated)})


def test_every_token_is_the_native_choice_and_pefts(causal: Path, target: Target) -> None:
    report = validate(causal, target, reference=True)
    rows = {row["adapter"]: row for row in report.data["tokens"]}
    assert list(rows) == [None, "wide", "narrow"]
    for row in rows.values():
        assert (row["prompts"], row["tokens"], row["native"]["same"], row["peft"]["same"]) == (3, 24, 24, 24)
        assert row["native"]["lead"] == 0.0, "the same kernels: the very same bits"
        assert row["peft"]["lead"] <= LEAD
    assert len({row["texts"] for row in rows.values()}) == 3, "adapters change what comes"
    assert report.data["base_restored"] == {"fp32": True}
    assert verdicts(report)["base tokens again after the adapters fp32"] == "pass"
    assert report.verdict is Verdict.PASS, verdicts(report)


def test_leads_and_near_ties() -> None:
    """Logits made by hand: [1, 2, 4] and the token taken decide what is a tie, what is a lead, and where."""
    scores = np.array([[1.0, 2.0, 4.0], [40.0, 39.996, 0.0], [0.5, 0.1, 0.0]], np.float32)

    def at(tokens: tuple[int, ...]) -> Any:
        return follow([([7], tokens)], lambda prompt, answer: scores)

    own = at((2, 0, 0))
    assert (own.same, own.lead, own.first) == (3, 0.0, None)
    tie = at((2, 1, 0))
    assert (tie.same, tie.first) == (2, (1, 2))
    assert tie.lead == pytest.approx(0.004 / 40, rel=1e-3)
    assert tie.lead <= LEAD
    wrong = at((1, 0, 1))
    assert (wrong.same, wrong.first) == (1, (1, 1))
    assert wrong.lead == pytest.approx(0.5), "2 of the largest, 4; the last is 0.4 of at least 1"
    broken = follow([([7], (0,))], lambda prompt, answer: np.array([[np.nan, 1.0]]))
    assert broken.lead == np.inf


def test_a_device_that_ignores_adapters_is_caught(
    causal: Path, target: Target, on: Callable[[Device], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(job: Job) -> WorkerResult:
        done = run_worker(
            job.model_copy(update={"prompts": tuple(p.model_copy(update={"adapter": None}) for p in job.prompts)})
        )
        named = zip(done.generated, job.prompts, strict=True)
        return done.model_copy(
            update={"generated": tuple(g.model_copy(update={"adapter": p.adapter}) for g, p in named)}
        )

    monkeypatch.setattr(on(Device()), "run", forget)
    found = verdicts(validate(causal, target, reference=True))
    assert found["tokens as native (base) fp32"] == "pass"
    assert {found[f"tokens as {who} {name} fp32"] for who in ("native", "PEFT") for name in ("wide", "narrow")} == {
        "fail"
    }


def test_one_wrong_token_fails_with_its_place(causal: Path, target: Target, on: Callable[[Device], Device]) -> None:
    on(Device(lambda r: changed(r, "wide", lambda tokens: (*tokens[:5], (tokens[5] + 1) % 300, *tokens[6:]))))
    report = validate(causal, target)
    (gate,) = [g for g in report.gates if g.name == "tokens as native wide fp32"]
    assert gate.verdict is Verdict.FAIL
    assert gate.value is not None
    assert gate.value > 100 * LEAD
    assert "the first other one is token 6 of prompt 1" in gate.detail
    assert verdicts(report)["tokens as native narrow fp32"] == "pass"


def test_what_else_a_device_may_get_wrong(causal: Path, target: Target, on: Callable[[Device], Device]) -> None:
    on(Device(lambda r: changed(r, "narrow", lambda tokens: tokens[:3])))
    assert verdicts(validate(causal, target))["answers complete narrow fp32"] == "fail"
    on(Device(lambda r: r.model_copy(update={"base_restored": False})))
    assert verdicts(validate(causal, target))["base restored bit for bit fp32"] == "fail"

    def other_base(result: WorkerResult) -> WorkerResult:
        *before, last = result.generated
        return result.model_copy(update={"generated": (*before, last.model_copy(update={"tokens": ((1, 2, 3),)}))})

    on(Device(other_base))
    assert verdicts(validate(causal, target))["base tokens again after the adapters fp32"] == "fail"
    for change in (
        lambda r: r.model_copy(update={"generated": r.generated[::-1]}),
        lambda r: changed(r, "wide", lambda tokens: ()),
    ):
        on(Device(change))
        with pytest.raises(DeviceError, match=r"test device answered with .*asked for"):
            validate(causal, target)


def test_a_quantized_variant_is_held_to_its_own_native_run(causal: Path, target: Target, tmp_path: Path) -> None:
    """Its own tokens with the same kernels exactly; PEFT, which knows nothing of its weights, is shown and not judged."""
    from edgepeft.pipeline import quantize

    own = Path(shutil.copytree(causal, tmp_path / "own"))
    quantize(own, "q4")
    report = validate(own, target, variants=["q4"], reference=True)
    assert report.verdict is Verdict.PASS, verdicts(report)
    assert {row["native"]["lead"] for row in report.data["tokens"]} == {0.0}
    assert all(row["peft"]["lead"] > LEAD for row in report.data["tokens"])
    assert not any("PEFT" in name for name in verdicts(report))


def test_prompts_by_adapter_and_chats(causal: Path, target: Target, on: Callable[[Device], Device]) -> None:
    device = on(Device())
    chat = ({"role": "system", "content": "be good"}, {"role": "user", "content": "hi"})
    report = validate(causal, target, data={"wide": PromptRows((chat, "why?", "when?")), "*": PROMPTS}, rows=2)
    assert report.verdict is Verdict.PASS, verdicts(report)
    texts = [(prompts.adapter, prompts.texts, prompts.chat) for prompts in device.jobs[0].prompts]
    assert texts == [
        (None, ("the film was", "naïve café"), False),
        ("wide", (chat, "why?"), None),
        ("narrow", ("the film was", "naïve café"), False),
        (None, ("the film was",), False),
    ]


def test_wrong_calls(causal: Path, bundle: Path, target: Target) -> None:
    with pytest.raises(InputError, match="no adapter 'nobody'; it has: \\*, wide, narrow"):
        validate(causal, target, data={"nobody": PROMPTS})
    with pytest.raises(InputError, match="is for text-generation: its data are prompts"):
        validate(causal, target, data={"wide": Examples(texts=("a",), labels=("b",))})
    with pytest.raises(InputError, match="is for text-classification: its data are labelled rows"):
        validate_on(bundle, target, data={"plain": PROMPTS})
    with pytest.raises(InputError, match="this model's context is 192 tokens"):
        validate(causal, target, new_tokens=500)
    with pytest.raises(InputError, match="rows must be at least 1"):
        validate(causal, target, rows=0)


def test_qnn_refuses_generation_by_name(causal: Path) -> None:
    target = load_target("android-qnn")
    place = find_place(target, task="text-generation")
    assert place.executor is None
    assert "does not run text-generation: HTP compiles one graph for each shape" in place.why_static
    report = validate(causal, target)
    assert (report.data["executed"], report.verdict) == (False, Verdict.INCONCLUSIVE)
    with pytest.raises(
        TargetError, match=r"--on qnn cannot execute android-qnn here: qnn .* does not run text-generation"
    ):
        validate(causal, target, on="qnn")


def test_no_measuring_command_sends_a_language_model_to_qnn(causal: Path) -> None:
    target = load_target("android-qnn")
    for report in (bench_on(causal, target), check_on(causal, causal, target)):
        assert (report.data["executed"], report.verdict) == (False, Verdict.INCONCLUSIVE)
        assert "does not run text-generation" in report.data["why"]
    job = Job(bundle=str(causal), variant="fp32", threads=1, prompts=(Prompts(adapter=None, texts=("a",)),))
    with pytest.raises(InputError, match="does not generate: HTP compiles one graph for each shape"):
        QnnExecutor(target).run(job)


def test_the_command_line_reads_prompts_and_refuses_labels(causal: Path, target: Target, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from edgepeft.cli import main

    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"prompt": "the film was", "completion": "good"}\n{"messages": [{"role": "user", "content": "hi"}]}\n'
    )
    file = tmp_path / "mine.toml"
    arguments = [
        "validate",
        str(causal),
        "--target",
        str(file),
        "--data",
        f"*={rows}",
        "--report",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(main, [*arguments, "--max-new-tokens", "4", "--no-reference", "--json"])
    assert done.exit_code == 0, done.output
    assert [(row["prompts"], row["tokens"]) for row in json.loads(done.stdout)["data"]["tokens"]] == [(2, 8)] * 3
    for command, said in (
        (["validate", str(causal)], "line 2: 'messages' must be a list of turns"),  # a likelihood needs an answer
        (["check", str(causal), "--baseline", str(causal)], "--data with labels are for classifiers"),
    ):
        done = CliRunner().invoke(main, [*command, "--data", f"wide={rows}"])
        assert (done.exit_code, said in done.stderr) == (2, True)
    done = CliRunner().invoke(main, ["validate", str(causal), "--max-new-tokens", "4"])
    assert (done.exit_code, "--max-new-tokens go with --target" in done.stderr) == (2, True)


def test_a_validation_that_is_broken_off_keeps_the_tokens_so_far(causal: Path, target: Target) -> None:
    """Broken off when PEFT would look at them: what the device took and the native run beside it are in the report."""
    kept = Partial()

    def progress(said: str) -> None:
        if said.startswith("the same tokens under PEFT"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate(causal, target, reference=True, progress=progress, keep=kept.keep)
    report = kept.report("validate", "interrupted")
    rows = {row["adapter"]: row for row in report.data["tokens"]}
    assert list(rows) == [None, "wide", "narrow"]
    assert rows[None]["peft"]["same"] == 24, "the base came before the first adapter"
    assert [(rows[name]["native"]["same"], rows[name]["peft"]) for name in ("wide", "narrow")] == [(24, None)] * 2
    found = verdicts(report)
    assert (found["measured to the end"], found["tokens as native wide fp32"]) == ("inconclusive", "pass")
    assert "tokens as PEFT wide fp32" not in found


def test_compare_executes_language_models_too(causal: Path, target: Target) -> None:
    report = compare_targets(causal, [target, load_target("android-qnn")], data={"*": PROMPTS}, rows=1, reference=False)
    rows = {row[0]: row for row in report.tables[0].rows}
    assert rows["mine"][3:5] == ("executed: local", "pass")
    assert rows["android-qnn"][3] == "static only"
    assert "key/value cache" in str(rows["android-qnn"][5])


def test_instructions_gate_where_an_emulator_counts(
    causal: Path, target: Target, on: Callable[[Device], Device], tmp_path: Path
) -> None:
    """Counts of a stand-in: the baseline's times 1.005 pass a tolerance of 1 %, times 1.02 do not."""
    from edgepeft.bench import CaseCount
    from edgepeft.report import write_reports

    class Counting(Device):
        counts, factor, version = True, 1.0, "1.0"

        def run(self, job: Job) -> WorkerResult:
            self.jobs.append(job)
            counts = tuple(
                CaseCount(case=case, instructions=(int(self.factor * 2e9), int(self.factor * 1e9)))
                for case in job.counted
            )
            done = run_worker(job.model_copy(update={"counted": (), "swaps": min(job.swaps, 10)}))
            host = done.host.model_copy(update={"onnxruntime": self.version})
            return done.model_copy(update={"counts": counts, "host": host})

    device = Counting(emulated=True)
    on(device)
    report = bench_on(causal, target, adapters=["wide"], shapes=["1x8"])
    (table,) = [t for t in report.tables if t.title == "Instructions of one inference"]
    assert [row[1:4] for row in table.rows] == [("wide", "1x8", 1000.0), ("wide", "1x8 decode", 1000.0)]
    assert not any(gate.unit in {"ms", "ratio"} for gate in report.gates)
    assert {case.adapter for case in device.jobs[0].counted} == {"wide"}
    saved = write_reports(tmp_path / "report", "bench", report).json
    for factor, verdict in ((1.005, "pass"), (1.02, "fail"), (0.5, "pass")):
        device.factor = factor
        found = verdicts(check_on(causal, saved, target, adapters=["wide"], shapes=["1x8"]))
        assert found["instructions fp32/wide 1x8"] == found["instructions fp32/wide 1x8 decode"] == verdict
    alike = check_on(causal, causal, target, adapters=["wide"], shapes=["1x8"])
    assert verdicts(alike)["instructions fp32/wide 1x8"] == "pass"
    with pytest.raises(InputError, match="none of the variants, adapters and shapes whose instructions were counted"):
        check_on(causal, saved, target, adapters=["narrow"], shapes=["1x8"])
    device.version = "2.0"
    with pytest.raises(InputError, match=r"with onnxruntime 1\.0, this is 2\.0: measure it again"):
        check_on(causal, saved, target, adapters=["wide"], shapes=["1x8"])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="is not the JSON report of a bench on test device"):
        check_on(causal, tmp_path / "other.json", target, adapters=["wide"], shapes=["1x8"])
    on(Device(emulated=True))
    uncounted = bench_on(causal, target, adapters=["wide"], shapes=["1x8"])
    assert "instructions were not counted: test device does not count" in uncounted.notes


def test_counting_without_an_emulator_is_said(causal: Path) -> None:
    from edgepeft.bench import Case
    from edgepeft.errors import MeasureError

    job = Job(bundle=str(causal), variant="fp32", threads=1, counted=(Case(adapter=None, batch=1, sequence=8),))
    with pytest.raises(MeasureError, match="EDGEPEFT_INSTRUCTIONS is not set"):
        run_worker(job)


def test_a_followed_result_is_plain_data() -> None:
    found = follow([([1], (0, 1))], lambda prompt, answer: np.array([[1.0, 0.0], [0.0, 3.0]]))
    assert dataclasses.asdict(found) == {"same": 2, "lead": 0.0, "first": None}
