"""MiniLM with adapters of random weights, two and four labels, on every executor that is ready here."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import save_lora

from edgepeft.data import Examples
from edgepeft.demo.assets import minilm
from edgepeft.devices import find_place, validate_on
from edgepeft.pipeline import export, quantize
from edgepeft.report.gate import Verdict
from edgepeft.targets import load_target

pytestmark = [pytest.mark.real, pytest.mark.slow]

TEXTS = (
    "The battery died after two days and the seller never answered.",
    "A moving, beautifully acted film that stays with you.",
    "omg sooo happy with my new phone :)",
    "The committee will meet on Thursday to discuss the budget.",
    "Great value",
    "I have owned three of these over the years and every one of them broke within a month of the warranty running out.",
    "Not bad.",
    "Would I watch it again? Twice.",
)


@pytest.fixture(scope="module")
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("real"), minilm()
    options = {
        "r": 8,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"],
        "scale": 0.05,
        "task_type": "SEQ_CLS",
    }
    adapters = {
        "two": save_lora(folder / "two", model, seed=1, num_labels=2, record={"labels": ["bad", "good"]}, **options),
        "four": save_lora(folder / "four", model, seed=2, num_labels=4, record={"labels": list("abcd")}, **options),
    }
    export(model, adapters, folder / "bundle")
    quantize(folder / "bundle", "int8")
    quantize(folder / "bundle", "w8a16", data={"*": Examples(texts=TEXTS, labels=None)})
    return folder / "bundle"


@pytest.mark.parametrize(
    ("target", "on", "variant"),
    [
        ("linux-x64-cpu", "cpp", "fp32"),
        ("linux-x64-cpu", "cpp", "int8"),
        ("linux-arm64-cpu", None, "fp32"),
        ("linux-arm64-cpu", None, "int8"),
        ("android-qnn", None, "fp32"),
        ("android-qnn", None, "w8a16"),
        ("web-wasm", "node", "int8"),
    ],
)
def test_executed(target: str, on: str | None, variant: str, real_bundle: Path, tmp_path: Path) -> None:
    from edgepeft.errors import TargetError
    from edgepeft.pipeline import write_input_style

    loaded, bundle = load_target(target), real_bundle
    try:
        place = find_place(loaded, on)
    except TargetError as error:
        pytest.skip(str(error))
    if place.executor is None:
        pytest.skip(place.why_static)
    if loaded.slots == "input":
        write_input_style(bundle, variant)
    data = {name: Examples(texts=TEXTS, labels=None) for name in ("two", "four")}
    rows = 3 if place.executor.emulated else len(TEXTS)
    report = validate_on(bundle, loaded, on=on, data=data, rows=rows, variants=[variant])
    assert report.verdict is Verdict.PASS, [gate for gate in report.gates if not gate.ok]
    assert report.data["base_restored"] == {variant: True}
    assert {row["adapter"]: row["rows"] for row in report.data["rows"]} == {"two": rows, "four": rows}
