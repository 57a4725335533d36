"""SmolLM2-135M on executors that are ready here: greedy tokens there beside a native run, base and adapters of random weights.

    python -m pytest tests/real/test_generate_devices_real.py -m slow

Under emulation a token takes about a second at q4, and some four with fp32 activations: half an hour in all on two idle cores.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_generate_real import LORA, export_smollm2

from edgepeft.data import PromptRows
from edgepeft.devices import find_place, validate_on
from edgepeft.errors import TargetError
from edgepeft.targets import load_target

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bundle`` with fp32 and q4, and ``exact``: the same whose q4 keeps activations in fp32."""
    import shutil

    import onnx_ir as ir

    from edgepeft.bundle import read_bundle
    from edgepeft.graph.passes.unpack_int4 import SetAccuracyLevel
    from edgepeft.pipeline import quantize
    from edgepeft.pipeline._manifest import write_manifest

    folder = export_smollm2(tmp_path_factory.mktemp("smollm2"))
    quantize(folder / "bundle", "q4")
    exact = Path(shutil.copytree(folder / "bundle", folder / "exact"))
    manifest = read_bundle(exact).manifest
    file = manifest.variants["q4"].file
    graph = ir.load(exact / file)
    SetAccuracyLevel(0)(graph)
    (exact / file).unlink()
    ir.save(graph, exact / file)
    write_manifest(exact, manifest, {name: entry for name, entry in manifest.files.items() if name != file})
    return folder


def executor_ready(target: str, on: str | None) -> None:
    try:
        place = find_place(load_target(target), on, "text-generation")
    except TargetError as error:
        pytest.skip(str(error))
    if place.executor is None:
        pytest.skip(place.why_static)


def judged(report: object) -> list[str]:
    """What failed of tokens and restoring; sizes are over the budgets, which are for encoders."""
    sizes = ("bundle size", "adapter size", "peak RSS")
    return [gate.name for gate in report.gates if not gate.ok and not gate.name.startswith(sizes)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("target", "on"), [("linux-x64-cpu", "cpp"), ("linux-arm64-cpu", None)])
def test_q4_as_it_ships(folder: Path, target: str, on: str | None) -> None:
    """32 greedy tokens after each prompt; each within 5 % of the largest logit of the native choice (see devices/tokens)."""
    executor_ready(target, on)
    report = validate_on(
        folder / "bundle", load_target(target), on=on, rows=1, variants=["q4"], new_tokens=32, reference=False
    )
    assert judged(report) == []
    rows = {row["adapter"]: row for row in report.data["tokens"]}
    assert list(rows) == [None, *LORA]
    assert len({row["texts"] for row in rows.values()}) == 3, "adapters change what comes"
    if on == "cpp":  # the same kernels: the very same bits
        assert {row["native"]["lead"] for row in rows.values()} == {0.0}


def test_q4_with_fp32_activations_on_aarch64_is_native(folder: Path) -> None:
    """The same weights and no quantized activations: each token is the native choice, or ties with it within 2e-4."""
    executor_ready("linux-arm64-cpu", None)
    prompts = {"*": PromptRows(("The capital of France is",), chat=False)}
    report = validate_on(
        folder / "exact", load_target("linux-arm64-cpu"), data=prompts, variants=["q4"], new_tokens=8, reference=False
    )
    rows = report.data["tokens"]
    assert [row["tokens"] for row in rows] == [8, 8, 8]
    assert max(row["native"]["lead"] for row in rows) <= 2e-4
    assert judged(report) == []
    assert report.data["base_restored"] == {"q4": True}
