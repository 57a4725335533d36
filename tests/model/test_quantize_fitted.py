"""q4 by GPTQ over bundles: adapters on while measuring, texts of one's own, the table against fp32, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from broken_numbers import break_weight
from causal import build_causal_bundle
from click.testing import CliRunner

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import BundleError, DataError, InputError, UnknownAdapterError
from edgepeft.pipeline import Goal, plan_quantize, quantize
from edgepeft.pipeline._calibration_runs import calibration_runs
from edgepeft.pipeline._manifest import write_manifest
from edgepeft.pipeline._quality import measure_quality
from edgepeft.pipeline._quantize_room import memory_mb


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("fitted"))


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "b"))


def texts(*found: str) -> Examples:
    return Examples(found, None)


def test_a_language_model_is_fitted_with_its_adapters(own: Path, made: Path) -> None:
    done = quantize(own, "q4")
    assert done.method == "gptq"
    bundle = read_bundle(own)
    bundle.verify()
    assert bundle.manifest.variants["q4"].recipe.startswith("4 bits in blocks of 32: GPTQ")
    assert done.quantized.share > 0.9
    counts = bundle.manifest.provenance["calibration"]["q4"]["texts"]
    assert counts["*"] > counts["wide"] == counts["narrow"] == 4
    for entry in bundle.manifest.adapters.values():
        assert (own / entry.onnx_adapter).read_bytes() == (made / entry.onnx_adapter).read_bytes()
    assert [row.adapter for row in done.quality] == [None, "wide", "narrow"]
    for row in done.quality:
        assert row.tokens > 100
        assert 0 < row.divergence < 3  # random weights: near-uniform noise
        assert row.divergence_error is not None
        assert 0 < row.same_top <= 1
    # The adapter is on in both sessions: its own perplexity, not the base's.
    assert done.quality[1].perplexity_before != pytest.approx(done.quality[0].perplexity_before, rel=1e-3)


def test_fitting_loses_less_than_rounding_to_nearest(own: Path, tmp_path: Path) -> None:
    windows = calibration_runs(read_bundle(own), {}, rows=64).held_out
    nearest = Path(shutil.copytree(own, tmp_path / "nearest"))
    assert quantize(nearest, "q4", method="rtn").quality == ()
    quantize(own, "q4", measure=False)
    healed = Path(shutil.copytree(own, tmp_path / "healed"))
    quantize(healed, "q4", heal=8, head_bits=8, replace=True, measure=False)
    lost = [[row.divergence for row in measure_quality(each, "q4", windows)] for each in (nearest, own, healed)]
    assert (np.array(lost[1]) < np.array(lost[0])).all()
    assert (np.array(lost[2]) < np.array(lost[1])).all()
    # The mean over base and adapters: of random weights each alone differs by some 5 % with the order of columns.
    assert np.mean(lost[1]) < 0.95 * np.mean(lost[0])
    assert np.mean(lost[2]) < 0.95 * np.mean(lost[1])


def test_the_measured_numbers_are_those_of_the_two_models(own: Path) -> None:
    done = quantize(own, "q4")
    windows = calibration_runs(read_bundle(own), {}, rows=64).held_out["wide"]
    sums = np.zeros(4)
    for window in windows:
        logits = []
        for variant in ("fp32", "q4"):
            decoder = runtime.open(own, variant=variant).adapter("wide").decoder(1, len(window))
            rows = [decoder.prefill([[window[0]]]).copy(), *(decoder.step([token]).copy() for token in window[1:-1])]
            found = np.concatenate(rows).astype(np.float64)
            logits.append(found - np.log(np.exp(found).sum(1, keepdims=True)))
        targets = np.array(window[1:])
        one, two = logits
        sums += [
            len(targets),
            -one[np.arange(len(targets)), targets].sum(),
            (np.exp(one) * (one - two)).sum(),
            (one.argmax(1) == two.argmax(1)).sum(),
        ]
    row = done.quality[1]
    assert row.tokens == sums[0]
    assert row.perplexity_before == pytest.approx(np.exp(sums[1] / sums[0]), rel=1e-4)
    # A token by itself is rounded to 8 bits by other kernels than many at once.
    assert row.divergence == pytest.approx(sums[2] / sums[0], rel=0.1)
    assert row.same_top == pytest.approx(sums[3] / sums[0], abs=0.03)


def test_texts_of_ones_own(own: Path) -> None:
    data = {"wide": texts(*["the film was very good"] * 90), "*": texts(*["the end of the book was not"] * 90)}
    done = quantize(own, "q4", data=data, rows=80)
    assert done.method == "gptq"
    assert {row.adapter for row in done.quality} == {None, "wide", "narrow"}
    read_bundle(own).verify()


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ({"other": texts("a b c")}, UnknownAdapterError, "/b has no adapter 'other'; it has: wide, narrow"),
        ({"*": texts("a")}, DataError, "the texts for the base hold no run of two tokens"),
        ({"*": texts("the film was"), "wide": texts("a")}, DataError, "the texts for wide hold no run of two tokens"),
    ],
)
def test_texts_that_cannot_be_run_are_refused_before_it_starts(
    data: dict[str, Examples], error: type[Exception], said: str, own: Path
) -> None:
    steps: list[str] = []
    with pytest.raises(error, match=said):
        quantize(own, "q4", data=data, announce=steps.append)
    assert not steps
    with pytest.raises(error, match=said):
        plan_quantize(own, "q4", data=data)


def test_texts_of_a_single_window_are_said_to_judge_what_they_fit(own: Path) -> None:
    steps: list[str] = []
    quantize(
        own, "q4", data={"*": texts("the film was very good", "and the end")}, measure=False, announce=steps.append
    )
    (base,) = (line for line in steps if line.startswith("the texts for the base hold"))
    assert "less than a window can keep apart: they are both fitted to and judged by" in base
    steps.clear()
    quantize(own, "q4", measure=False, replace=True, announce=steps.append)
    assert not any("less than a window" in line for line in steps)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("int8", {}),
        ("q8", {}),
        ("q4", {"method": "rtn"}),
        ("q4", {"method": "mse"}),
        ("q4", {}),
        ("q4", {"goal": Goal(bits=6)}),
    ],
)
def test_a_weight_that_is_not_finite_is_named(variant: str, options: dict, own: Path) -> None:
    """By recipes that look at weights alone, and by those that run the model and meet its activations first."""
    name = break_weight(own, "down_proj")
    with pytest.raises(BundleError, match=rf"[wW]eight {name} .*(not finite|holds NaN or infinity)"):
        quantize(own, variant, measure=False, **options)
    assert list(read_bundle(own).manifest.variants) == ["fp32"]


def test_a_base_of_nan_is_no_matter_of_half_precision(own: Path) -> None:
    break_weight(own, "down_proj")
    with pytest.raises(BundleError, match="the base computes numbers that are not finite in float32 already"):
        quantize(own, "fp16")


def test_a_kill_half_way_leaves_the_bundle_as_before(own: Path) -> None:
    """SIGKILL while weights are fitted; the next command removes what was left beside the bundle, and makes the variant."""
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    code = "import sys; from edgepeft.pipeline import quantize; quantize(sys.argv[1], 'q4', announce=print)"
    process = subprocess.Popen(  # nosec - our own code
        [sys.executable, "-u", "-W", "ignore", "-c", code, str(own)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("quantizing to q4"):
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before
    quantize(own, "q4", measure=False)
    read_bundle(own).verify()
    assert [path.name for path in own.parent.iterdir()] == [own.name]


@pytest.mark.parametrize("options", [{}, {"heal": 4, "head_bits": 8}, {"layer_bits": 8}, {"method": "mse"}])
def test_a_dry_run_tells_the_weights_to_the_byte(options: dict, own: Path) -> None:
    plan = plan_quantize(own, "q4", **options)
    quantize(own, "q4", measure=False, **options)
    assert plan.files[1].bytes == (own / plan.files[1].name).stat().st_size


def test_layers_in_8_bits_lose_less_and_the_table_keeps_4(own: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(own, tmp_path / "other"))
    lost = {}
    for bundle, bits in ((own, None), (other, 8)):
        done = quantize(bundle, "q4", layer_bits=bits)
        lost[bits] = np.mean([row.divergence for row in done.quality])
        if bits:
            assert "8 bits for linear layers" in read_bundle(bundle).manifest.variants["q4"].recipe
        nodes = ir.load(bundle / "onnx" / "model_q4.onnx").graph
        found = {(n.op_type, n.attributes["bits"].as_int()) for n in nodes if "bits" in n.attributes}
        assert {("GatherBlockQuantized", 4), ("MatMulNBits", bits or 4)} <= found
    assert lost[8] < lost[None]


def test_an_encoder_wants_texts(own_bundle: Path) -> None:
    with pytest.raises(
        InputError, match=r"cannot be run for it: .* no texts are given: --data .* --method rtn needs no data"
    ):
        quantize(own_bundle, "q4", method="gptq")
    assert quantize(own_bundle, "q4").method == "rtn"


@pytest.mark.parametrize(
    ("variant", "options", "said"),
    [
        ("int8", {"method": "gptq"}, "--method chooses how q4 rounds; int8 has one way"),
        ("q4", {"method": "awq"}, "no method 'awq'; there are: gptq, mse, rtn"),
        ("q4", {"method": "rtn", "heal": 4}, "go with --method gptq"),
        ("q4", {"head_bits": 3}, "a head and layers have 4 or 8 bits; found 0, 3 and None"),
        ("q4", {"layer_bits": 2}, "found 0, None and 2"),
        ("q4", {"heal": -1}, "found -1, None and None"),
        ("q4", {"method": "rtn", "layer_bits": 8}, "--layer-bits, .* go with --method gptq"),
        ("q4", {"layer_bits": 8, "goal": Goal(bytes=10**6)}, "each matrix gets the bits that it is worth"),
        ("q4", {"method": "rtn", "data": {"*": texts("a text")}}, "q4 measures nothing beforehand"),
    ],
)
def test_what_is_refused(variant: str, options: dict, said: str, own: Path) -> None:
    with pytest.raises(InputError, match=said):
        quantize(own, variant, **options)
    assert list(read_bundle(own).manifest.variants) == ["fp32"]


def test_the_table(own: Path) -> None:
    shown = CliRunner().invoke(main, ["quantize", str(own), "--variant", "q4"])
    assert shown.exit_code == 0, shown.output
    assert "Against fp32, on texts kept apart" in shown.output
    assert "(base)" in shown.output
    assert "±" in shown.output
    again = CliRunner().invoke(main, ["quantize", str(own), "--variant", "q4", "--replace", "--heal", "2", "--json"])
    found = json.loads(again.stdout)
    assert found["method"] == "gptq"
    assert [row["adapter"] for row in found["quality"]] == [None, "wide", "narrow"]


@pytest.mark.parametrize(
    ("what", "patch", "said"),
    [
        ("free_memory_mb", lambda: 100.0, r"making q4 takes about 0\.3 GB of memory at its peak, and 0\.1 GB are free"),
        ("free_disk_mb", lambda target: 0.0, r"making q4 takes about \d MB of disk at its peak, and 0 MB are free"),
    ],
    ids=["memory", "disk"],
)
def test_what_cannot_fit_is_refused_before_it_starts(
    own: Path, monkeypatch: pytest.MonkeyPatch, what: str, patch: Any, said: str
) -> None:
    monkeypatch.setattr(f"edgepeft.pipeline._quantize_room.{what}", patch)
    steps: list[str] = []
    with pytest.raises(InputError, match=said):
        quantize(own, "q4", announce=steps.append)
    assert not steps
    assert list(read_bundle(own).manifest.variants) == ["fp32"]


def test_room_is_asked_for_what_is_made() -> None:
    """Twice the weights where they are fitted, more where bits are chosen for a goal, less where nothing is run."""
    plain, fitted, chosen = (memory_mb(m, 1e9, goal=g) for m, g in (("rtn", False), ("gptq", False), ("gptq", True)))
    assert 1000 < plain < fitted < 2500 < chosen
    assert memory_mb("gptq", 2e9) - fitted == pytest.approx(fitted - memory_mb("gptq", 0))


def test_windows_begin_as_prompts_do(own: Path) -> None:
    """Where the tokenizer puts a token before a text, each window has it: some models write at random without."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    bundle = read_bundle(own)
    plain, manifest, first = calibration_runs(bundle, {}, rows=64), bundle.manifest, 1
    tokenizer = Tokenizer.from_file(str(own / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", first), ("<|im_end|>", 2)]
    )
    tokenizer.save(str(own / "tokenizer.json"))
    write_manifest(own, manifest)
    runs = calibration_runs(read_bundle(own), {}, rows=64)
    windows = [feeds["input_ids"][0] for feeds in (*runs.feeds, *runs.probes)]
    assert all(window[0] == first and 2 not in window for window in windows)
    longest = max(len(window) for window in windows)
    assert longest == max(len(feeds["input_ids"][0]) for feeds in plain.feeds)
    assert list(windows[0][1:]) == list(plain.feeds[0]["input_ids"][0][: longest - 1])
