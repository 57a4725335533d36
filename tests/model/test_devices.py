"""Executors and what is said of a bundle on them, with a tiny bundle and executors that misbehave on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stand_in import Device, host_target

from edgepeft.bench import Job, WorkerResult, run_worker
from edgepeft.bundle import read_bundle
from edgepeft.data import Examples
from edgepeft.devices import (
    bench_on,
    check_on,
    choose_variants,
    compare_targets,
    deployed_mb,
    executor_for,
    find_place,
    require_size,
    validate_on,
)
from edgepeft.errors import DeviceError, InputError, TargetError
from edgepeft.report import Partial
from edgepeft.report.gate import Report, Verdict
from edgepeft.targets import Target, host_machine, list_targets, load_target

#: Why a bundle that was not prepared for browsers fails there, and what to do.
WEB_SLOTS = (
    "slots fp32 as 'input': the variant's slots are 'overridable'; write them as inputs with: edgepeft web prepare {}"
)
TEXTS = ("a good film", "the plot was not very good", "awful", "fine , a great end .") * 3


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return host_target(tmp_path)


def on(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr("edgepeft.devices.place.executor_for", lambda target, address=None: device)
    return device


def verdicts(report: Report) -> dict[str, str]:
    return {gate.name: gate.verdict.value for gate in report.gates}


def test_local_gives_the_labels_and_bits_of_a_native_run(bundle: Path, target: Target) -> None:
    data = {"head": Examples(texts=TEXTS, labels=tuple("abc" * 4))}
    report = validate_on(bundle, target, data=data, rows=5)
    # One process each, the same kernels: not one bit may differ natively; PEFT within the parity tolerance.
    rows = {row["adapter"]: row for row in report.data["rows"]}
    assert {name: (row["rows"], row["same_native"], row["native_difference"]) for name, row in rows.items()} == {
        "plain": (5, 5, 0.0),
        "head": (5, 5, 0.0),
        "dora": (5, 5, 0.0),
    }
    assert all(row["peft_difference"] <= 1e-4 and row["same_peft"] == 5 for row in rows.values())
    assert rows["head"]["hits"] == rows["head"]["peft_hits"]
    assert report.data["base_restored"] == {"fp32": True}
    assert report.data["executed"] is True
    assert report.verdict is Verdict.PASS, verdicts(report)


def test_a_device_that_ignores_adapters_is_caught(
    bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a runtime that loads an adapter and does nothing with it gives: the base's logits for every adapter."""

    def forget(job: Job) -> WorkerResult:
        rows = tuple(r.model_copy(update={"adapter": None if r.adapter == "plain" else r.adapter}) for r in job.rows)
        result = run_worker(job.model_copy(update={"rows": rows}))
        named = zip(result.rows, job.rows, strict=True)
        return result.model_copy(update={"rows": tuple(r.model_copy(update={"adapter": j.adapter}) for r, j in named)})

    device = on(Device(), monkeypatch)
    monkeypatch.setattr(device, "run", forget)
    report = validate_on(bundle, target, reference=False, adapters=None)
    assert verdicts(report)["logits against native plain fp32"] == "fail"
    assert report.verdict is Verdict.FAIL


def test_logits_of_another_width_are_refused(bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(result: WorkerResult) -> WorkerResult:
        rows = tuple(r.model_copy(update={"logits": tuple(row[:2] for row in r.logits)}) for r in result.rows)
        return result.model_copy(update={"rows": rows})

    on(Device(narrow), monkeypatch)
    with pytest.raises(
        DeviceError, match=r"test device gave logits of shape \(8, 2\) for plain, a native run gives \(8, 3\)"
    ):
        validate_on(bundle, target, reference=False)


def test_a_base_that_does_not_come_back_fails(bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    on(Device(lambda r: r.model_copy(update={"base_restored": False})), monkeypatch)
    report = validate_on(bundle, target, reference=False)
    assert verdicts(report)["base restored bit for bit fp32"] == "fail"


def test_an_answer_to_another_question_is_refused(
    bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Device(lambda r: r.model_copy(update={"rows": r.rows[::-1]})), monkeypatch)
    with pytest.raises(DeviceError, match=r"test device answered with rows .*asked for"):
        validate_on(bundle, target, reference=False)


def test_emulated_time_is_never_judged(bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = target.model_copy(
        update={
            "budgets": target.budgets.model_copy(update={"swap_ms": 1e-9, "load_ms": 1e-9, "p50_ms": {"1x32": 1e-9}})
        }
    )
    on(Device(emulated=True), monkeypatch)
    for report in (
        validate_on(bundle, tight, reference=False),
        bench_on(bundle, tight),
        check_on(
            bundle, bundle, tight, data={"*": Examples(texts=TEXTS[:4], labels=("LABEL_0",) * 4)}, adapters=["plain"]
        ),
    ):
        assert not any(gate.unit in {"ms", "ratio"} for gate in report.gates), verdicts(report)
        assert report.verdict is not Verdict.FAIL
        assert any("emulated" in note for note in report.notes)


def test_the_same_budgets_are_judged_where_time_is_real(
    bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = target.model_copy(update={"budgets": target.budgets.model_copy(update={"swap_ms": 1e-9, "p50_ms": {}})})
    on(Device(), monkeypatch)
    report = bench_on(bundle, tight, shapes=["1x8"], adapters=["plain"], processes=2)
    assert verdicts(report)["swap fp32"] == "fail"


def test_too_large_is_refused_before_the_device_sees_a_byte(
    bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = target.model_copy(update={"budgets": target.budgets.model_copy(update={"bundle_mb": 0.001})})
    device = on(Device(), monkeypatch)
    for call in (validate_on, bench_on, lambda b, t: check_on(b, b, t)):
        with pytest.raises(
            TargetError, match=r"with fp32 has 0\.\d MB, mine allows bundle_mb = 0\.001; nothing was copied"
        ):
            call(bundle, small)
    assert device.jobs == []


def test_what_a_device_gets_leaves_other_variants_out(own_bundle: Path, target: Target) -> None:
    from edgepeft.pipeline import quantize

    manifest = quantize(own_bundle, "int8").bundle.manifest
    both = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    fp32 = sum(manifest.files[f"onnx/{name}"].bytes for name in ("model.onnx", "model.onnx_data")) / 1e6
    int8 = sum(manifest.files[f"onnx/{name}"].bytes for name in ("model_int8.onnx", "model_int8.onnx_data")) / 1e6
    assert deployed_mb(manifest, "int8") == pytest.approx(both - fp32)
    assert deployed_mb(manifest, "fp32") == pytest.approx(both - int8)
    assert choose_variants(manifest, target) == ("int8",)
    assert choose_variants(manifest, target, ["fp32", "fp32"]) == ("fp32",)
    with pytest.raises(InputError, match="no variant 'q4' in the bundle; it has: fp32, int8"):
        choose_variants(manifest, target, ["q4"])
    between = (deployed_mb(manifest, "int8") + deployed_mb(manifest, "fp32")) / 2
    tight = target.model_copy(update={"budgets": target.budgets.model_copy(update={"bundle_mb": between})})
    require_size(read_bundle(own_bundle), tight, ["int8"])
    with pytest.raises(TargetError, match="use --variant int8"):
        require_size(read_bundle(own_bundle), tight, ["fp32"])


@pytest.mark.parametrize("name", [t.name for t in list_targets()])
def test_every_shipped_target_judges_a_bundle(name: str, bundle: Path) -> None:
    """By its executor where it is ready, else by static checks that say so; either way by its own size budget."""
    target = load_target(name)
    place = find_place(target)
    if place.executor is not None and name != "linux-x64-cpu":
        pytest.skip(f"{place.executor.name} is ready; its own tests run it")
    report = validate_on(bundle, target, reference=False)
    found = verdicts(report)
    assert found["bundle size fp32"] == "pass"
    tiny = target.model_copy(
        update={"budgets": target.budgets.model_copy(update={"bundle_mb": 0.01, "adapter_mb": 0.001})}
    )
    assert verdicts(validate_on(bundle, tiny, reference=False))["bundle size fp32"] == "fail"
    assert verdicts(validate_on(bundle, tiny, reference=False))["adapter size plain"] == "fail"
    if place.executor is None:
        assert found[f"executed on {name}"] == "inconclusive"
        assert found["opset fp32"] == "pass"
        assert ("slots fp32 as 'input'" in found) == (target.slots == "input")
        assert place.why_static
    else:
        assert found["executed on local"] == "pass"


def test_a_graph_beyond_the_target_fails_static_checks(bundle: Path) -> None:
    target = load_target("ios-coreml")
    strict = target.model_copy(
        update={"graph": target.graph.model_copy(update={"opset": 17, "forbidden_ops": ("MatMul", "Conv")})}
    )
    gates = {gate.name: gate for gate in validate_on(bundle, strict).gates}
    assert gates["opset fp32"].verdict is Verdict.FAIL
    assert gates["operators fp32"].verdict is Verdict.FAIL
    assert "MatMul" in gates["operators fp32"].detail
    assert "Conv" not in gates["operators fp32"].detail


def test_an_executor_asked_for_by_name_must_be_ready(bundle: Path, target: Target) -> None:
    with pytest.raises(InputError, match="--on 'moon': no such executor; use local, cpp, arm64"):
        validate_on(bundle, target, on="moon")
    elsewhere = load_target("windows-x64-cpu" if "windows" not in host_machine() else "linux-x64-cpu")
    with pytest.raises(TargetError, match=r"--on local cannot execute .*run edgepeft on a"):
        validate_on(bundle, elsewhere, on="local")
    assert executor_for(load_target("ios-coreml")) is None


def test_compare_holds_a_bundle_against_every_target(bundle: Path) -> None:
    report = compare_targets(bundle, execute=False)
    rows = {row[0]: row for row in report.tables[0].rows}
    assert list(rows) == [t.name for t in list_targets()]
    assert {row[3] for row in rows.values()} == {"static only"}
    # its shapes are not the fixed ones that this target demands
    assert rows["ios-coreml"][4] == "inconclusive"
    assert "as shipped CoreML takes" in rows["ios-coreml"][5]
    assert "edgepeft targets freeze" in rows["ios-coreml"][5]
    assert (rows["web-wasm"][4], rows["web-wasm"][5]) == ("fail", WEB_SLOTS.format(bundle))
    assert report.verdict is Verdict.FAIL
    here = [t for t in list_targets() if t.executor == "local"]
    executed = compare_targets(bundle, here, reference=False)
    rows = {row[0]: row for row in executed.tables[0].rows}
    if host_machine() == "linux x86_64":
        assert rows["linux-x64-cpu"][3:5] == ("executed: local", "pass")
    assert rows["windows-x64-cpu"][3] == ("executed: local" if "windows" in host_machine() else "static only")


def test_compare_goes_on_where_an_executor_breaks(
    bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: Job) -> WorkerResult:
        raise DeviceError("the cable fell out")

    device = on(Device(), monkeypatch)
    monkeypatch.setattr(device, "run", broken)
    report = compare_targets(bundle, [target, target], reference=False)
    assert [row[4:] for row in report.tables[0].rows] == [("fail", "the cable fell out")] * 2


def test_wrong_calls(bundle: Path, target: Target) -> None:
    with pytest.raises(InputError, match="no adapter 'nobody'; it has: plain, head, dora"):
        validate_on(bundle, target, data={"nobody": Examples(texts=TEXTS, labels=None)})
    with pytest.raises(InputError, match="rows must be at least 1"):
        validate_on(bundle, target, rows=0)
    with pytest.raises(ValueError, match="1 second texts for 2 texts"):
        Job.model_validate_json(
            json.dumps({"bundle": "b", "variant": "v", "threads": 1, "rows": [
                {"adapter": None, "texts": ["a", "b"], "pairs": ["c"]}]})
        )  # fmt: skip


def test_a_validation_that_is_broken_off_keeps_the_variants_and_adapters_so_far(
    bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second variant's rows are never compared; those of the first are in the report, with their gates."""
    kept = Partial()
    variants = [*read_bundle(bundle).manifest.variants][:1] * 2
    monkeypatch.setattr("edgepeft.devices.validate.choose_variants", lambda *_: tuple(variants))

    class Stopping(Device):
        def run(self, job: Job) -> WorkerResult:
            if self.jobs:
                raise KeyboardInterrupt
            return super().run(job)

    on(Stopping(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        validate_on(bundle, target, reference=False, keep=kept.keep)
    report = kept.report("validate", "interrupted")
    assert report.verdict is Verdict.INCONCLUSIVE
    found = verdicts(report)
    assert found["measured to the end"] == "inconclusive"
    assert found["same label as native head fp32"] == "pass"
    assert found["base restored bit for bit fp32"] == "pass"
    assert {row["adapter"] for row in report.data["rows"]} == {"plain", "head", "dora"}
    assert report.data["partial"] == "interrupted"


def test_rows_from_elsewhere_so_far_are_kept(bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Partial()
    rows = Examples(texts=TEXTS, labels=tuple("abc" * 4), source="here.csv")
    elsewhere = [Examples(texts=TEXTS, labels=tuple("cba" * 4), source=f"{name}.csv") for name in ("one", "two")]

    def progress(said: str) -> None:
        if said.endswith("two.csv"):
            raise KeyboardInterrupt

    on(Device(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        validate_on(
            bundle, target, data={"head": rows}, inside={"head": rows}, general=elsewhere, reference=False,
            progress=progress, keep=kept.keep,
        )  # fmt: skip
    report = kept.report("validate", "interrupted")
    assert [(row["data"], row["domain"]) for row in report.data["generalization"]] == [
        ("here.csv", "in"),
        ("one.csv", "out"),
    ]
    assert report.data["rows"], "what was run on the device is in it too"


def test_an_emulated_bench_and_a_comparison_that_are_broken_off(
    bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Partial()
    variant = next(iter(read_bundle(bundle).manifest.variants))
    device = Device(emulated=True)
    on(device, monkeypatch)

    def progress(done: int, total: int, what: str) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_on(bundle, target, variants=[variant], shapes=["1x8"], progress=progress, keep=kept.keep)
    report = kept.report("bench", "interrupted")
    assert list(report.data["results"]) == [variant]
    assert report.verdict is Verdict.INCONCLUSIVE

    def told(said: str) -> None:
        if said.startswith("second"):
            raise KeyboardInterrupt

    second = target.model_copy(update={"name": "second"})
    with pytest.raises(KeyboardInterrupt):
        compare_targets(bundle, [target, second], execute=False, progress=told, keep=kept.keep)
    report = kept.report("compare", "interrupted")
    assert [row[0] for row in report.tables[0].rows] == ["mine"]


def test_a_comparison_of_a_wrong_call_is_none(bundle: Path, target: Target) -> None:
    with pytest.raises(InputError, match="has no adapter 'nobody'"):
        compare_targets(bundle, [target], data={"nobody": Examples(texts=TEXTS, labels=None)})
    with pytest.raises(InputError, match="rows must be at least 1"):
        compare_targets(bundle, [target], rows=0, reference=False)
