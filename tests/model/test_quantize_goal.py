"""quantize with a goal: a size or bits are kept, a divergence is reached, sensitivities are measured once, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from causal import build_causal_bundle
from click.testing import CliRunner

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.errors import InputError
from edgepeft.pipeline import Goal, plan_quantize, quantize
from edgepeft.pipeline._calibration_runs import calibration_runs
from edgepeft.quantize.calibrated import fit
from edgepeft.quantize.packing import BLOCK, Form
from edgepeft.quantize.sensitivity import divergence_of, measure_sensitivity
from edgepeft.quantize.weights import matrices
from edgepeft.runtime.sessions import open_session


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("goal"))


@pytest.fixture
def own(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(made, tmp_path / "b"))


def test_a_size_is_kept(own: Path) -> None:
    said: list[str] = []
    done = quantize(own, "q4", goal=Goal(bytes=120_000), announce=said.append)
    assert done.front is not None
    assert done.bytes_after <= 120_000
    assert done.front.chosen[0] * 1e6 == pytest.approx(done.bytes_after, rel=0.03)
    assert len(done.front.forms) > 1
    bundle = read_bundle(own)
    bundle.verify()
    kept = bundle.manifest.provenance["calibration"]["q4"]["bits"]
    assert kept["measured_divergence"] == pytest.approx(done.front.measured, abs=1e-5)
    assert bundle.manifest.variants["q4"].recipe.startswith(f"{done.front.bits:.2f} bits a weight")
    # A smaller one is worse, and what matrices are worth is not measured again.
    again: list[str] = []
    less = quantize(own, "q4", goal=Goal(bits=5.0), replace=True, announce=again.append)
    assert less.front is not None
    assert less.front.bits <= 5.0
    assert less.front.measured > done.front.measured
    assert any("one matrix rounded at a time" in line for line in said)
    assert any("known from an earlier run" in line for line in again)
    assert not any("one matrix rounded at a time" in line for line in again)


def test_the_report_draws_the_front(own: Path) -> None:
    from edgepeft.html_report.charts import short
    from edgepeft.html_report.sections import bits_section

    assert bits_section([read_bundle(own)]) is None
    done = quantize(own, "q4", goal=Goal(bits=6))
    assert done.front is not None
    section = bits_section([read_bundle(own)])
    assert section is not None
    (chart,) = section.charts
    assert "<svg" in chart.svg
    assert f"measured divergence of {done.front.measured:.4f}" in chart.label
    assert len(chart.numbers.rows) == len(done.front.points)
    assert short(next(iter(done.front.sensitivity))) in chart.caption
    assert "mathdefault" not in chart.svg


def test_a_divergence_is_reached_and_measured(own: Path) -> None:
    done = quantize(own, "q4", goal=Goal(divergence=0.06))
    assert done.front is not None
    assert done.front.measured <= 0.06
    # The mean over answers of the base and both adapters is the one that the table has by adapter.
    total = sum(row.divergence * row.tokens for row in done.quality) / sum(row.tokens for row in done.quality)
    assert total == pytest.approx(done.front.measured, rel=0.1)
    runtime.open(own, variant="q4").adapter("wide")


def test_a_goal_that_nothing_reaches(own: Path) -> None:
    # Told from shapes, before anything is run; a little above that it takes the sizes of what was made.
    for goal in (Goal(bytes=50_000), Goal(bits=4.0)):
        said: list[str] = []
        with pytest.raises(InputError, match=r"the smallest is 0\.09 MB or a little more \(4\.42 bits a weight"):
            quantize(own, "q4", goal=goal, announce=said.append)
        assert not said
        with pytest.raises(InputError, match="no choice of bits reaches that size"):
            plan_quantize(own, "q4", goal=goal)
    with pytest.raises(InputError, match=r"the smallest is 0\.10 MB \(.*bits a weight\), with an expected divergence"):
        quantize(own, "q4", goal=Goal(bytes=96_000))
    with pytest.raises(InputError, match=r"at most 1e-09: the nearest has .* MB\. Take --max-kld"):
        quantize(own, "q4", goal=Goal(divergence=1e-9))
    assert list(read_bundle(own).manifest.variants) == ["fp32"]
    read_bundle(own).verify()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget-mb", "1", "--bits", "5"), "give one of a size"),
        (("--budget-mb", "0"), "are above 0; found 0"),
        (("--max-kld", "-1"), "are above 0; found -1"),
        (("--budget-mb", "1", "--head-bits", "8"), "each matrix gets the bits that it is worth"),
        (("--bits", "5", "--heal", "2"), "do more as bits than as corrections"),
        (("--budget-mb", "1", "--method", "rtn"), "go with --method gptq"),
        (("--bits", "nan"), "are above 0; found nan"),
    ],
)
def test_what_is_refused(options: tuple[str, ...], said: str, own: Path) -> None:
    shown = CliRunner().invoke(main, ["quantize", str(own), "--variant", "q4", *options])
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert list(read_bundle(own).manifest.variants) == ["fp32"]


def test_what_is_shown(own: Path) -> None:
    command = ["quantize", str(own), "--variant", "q4", "--bits", "6"]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "The front: what each size could reach" in shown.output
    assert "chosen:" in shown.output
    found = json.loads(CliRunner().invoke(main, [*command, "--replace", "--json"]).stdout)
    assert found["front"]["bits"] <= 6
    assert sum(found["front"]["forms"].values()) == pytest.approx(found["quantized"], rel=0.01)


def test_sensitivities_are_those_of_graphs_with_one_matrix_rounded(own: Path, tmp_path: Path) -> None:
    """Against graphs written with that matrix changed, without the machinery of inputs and offsets."""
    bundle = read_bundle(own)
    slots, source = bundle.manifest.slots, own / bundle.manifest.variants["fp32"].file
    runs = calibration_runs(bundle, {}, rows=64)
    names = [m.name for m in matrices(ir.load(source).graph, slots, width=BLOCK)]
    fitted = fit(source, slots, dict.fromkeys(names, Form()), batches=runs.feeds, open_session=open_session)
    rounded = {name: each.rounded for name, each in fitted.items()}
    found = measure_sensitivity(source, slots, rounded, runs.probes, open_session)
    assert found.each.keys() == rounded.keys()
    assert found.together > max(found.each.values()) > 0
    assert 0.3 < found.factor < 3
    assert not list(source.parent.glob("*probe*"))
    for name in list(rounded)[:4]:
        model = ir.load(source)
        ir.external_data.load_to_model(model)
        (matrix,) = (m for m in matrices(model.graph, slots, width=BLOCK) if m.name == name)
        assert matrix.value.const_value is not None
        old = matrix.numbers
        new = rounded[name].packed.weight()
        bias = rounded[name].bias
        assert np.abs(new - old).max() > 0
        value = new if matrix.transposed else np.ascontiguousarray(new.T)
        matrix.value.const_value = ir.tensor(value, name=name)
        for node in matrix.linear:
            _add(model.graph, node, bias)
        ir.save(model, tmp_path / "changed.onnx")
        apart = divergence_of(source, tmp_path / "changed.onnx", runs.probes, open_session)
        assert found.each[name] == pytest.approx(apart, rel=0.02, abs=1e-7)


def _add(graph: ir.Graph, node: ir.Node, bias: np.ndarray | None) -> None:
    """The same Add, in the simplest way: the node writes under another name."""
    assert bias is not None
    output = node.outputs[0]
    constant = ir.Value(name=f"{node.name}_b", const_value=ir.tensor(bias, name=f"{node.name}_b"))
    graph.register_initializer(constant)
    add = ir.node("Add", [output, constant])
    users = [(user, index) for user, index in output.uses() if user is not add]
    graph.insert_after(node, [add])
    for user, index in users:
        user.replace_input_with(index, add.outputs[0])
    if output.is_graph_output():
        graph.outputs[list(graph.outputs).index(output)] = add.outputs[0]
        add.outputs[0].name, output.name = output.name, f"{output.name}_before"
        add.outputs[0].type, add.outputs[0].shape = output.type, output.shape


def test_eight_bits_lose_next_to_nothing(own: Path) -> None:
    done = quantize(own, "q8")
    assert done.method is None
    assert done.quantized.share > 0.9
    source, target = (own / read_bundle(own).manifest.variants[v].file for v in ("fp32", "q8"))
    runs = calibration_runs(read_bundle(own), {}, rows=64)
    lost = divergence_of(source, target, runs.apart, open_session)
    nearest = quantize(own, "q4", method="mse")
    assert "smallest squared error" in nearest.bundle.manifest.variants["q4"].recipe
    four = divergence_of(source, own / nearest.bundle.manifest.variants["q4"].file, runs.apart, open_session)
    assert 0 < lost < four / 20
    plain = quantize(own, "q4", method="rtn", replace=True)
    assert four < divergence_of(source, own / plain.bundle.manifest.variants["q4"].file, runs.apart, open_session)
