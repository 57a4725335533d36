"""What an adapter loses on rows from elsewhere: drops between files, forgetting against the base, gates and warnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from click.testing import CliRunner
from conftest import WORDS, Models, save_lora

from edgepeft import runtime
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.devices import validate_on
from edgepeft.errors import DataError, InputError
from edgepeft.metrics import Scored, measure
from edgepeft.pipeline import export, validate
from edgepeft.report.gate import Verdict
from edgepeft.targets import GeneralizationRules, load_target
from edgepeft.validate import read_language_rows
from edgepeft.validate.generalization import compared

NAMES = "abcde"


def texts(rows: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 6)) for _ in range(rows)]


@pytest.fixture
def answered(bundle: Path) -> Callable[..., Examples]:
    """``answered(rows, right, seed)``: rows of which the adapter ``head`` answers the share ``right`` right."""
    view = runtime.open(bundle).adapter("head")

    def get(rows: int, right: float, seed: int, source: str) -> Examples:
        words = texts(rows, seed)
        given = [found.label for found in view.predict(words)]
        wrong = np.random.default_rng(seed).permutation(rows)[: round(rows * (1 - right))]
        labels = [NAMES[NAMES.index(each) - 1] if place in wrong else each for place, each in enumerate(given)]
        return Examples(tuple(words), tuple(labels), source=source)

    return get


def test_a_drop_is_measured_gated_and_warned_of(bundle: Path, answered: Callable[..., Examples]) -> None:
    inside, near, far = (
        answered(300, 0.9, 1, "in.csv"),
        answered(300, 0.88, 2, "near.csv"),
        answered(300, 0.7, 3, "far.csv"),
    )
    result = validate(
        bundle, data={"head": inside}, general=[near, far], rules=GeneralizationRules(max_drop=0.1), reference=False
    )
    rows = {each.data: each for each in result.generalization}
    assert [each.domain for each in result.generalization] == ["in", "out", "out"]
    assert (rows["far.csv"].score.estimate, rows["in.csv"].score.estimate) == pytest.approx((0.7, 0.9))
    drop = rows["far.csv"].drop
    assert drop is not None
    assert drop.estimate == pytest.approx(0.2)
    assert drop.lower < 0.2 < drop.upper
    # The base's own head has other labels: it says nothing of these rows.
    assert all(each.base is None and each.forgetting is None for each in result.generalization)
    gates = {gate.name: gate.verdict for gate in result.gates if gate.name.startswith("generalization")}
    assert gates == {
        "generalization drop: head fp32 on near.csv": Verdict.PASS,
        "generalization drop: head fp32 on far.csv": Verdict.FAIL,
    }
    (said,) = result.notes
    assert "head fp32 on far.csv: what was learnt does not carry over: accuracy 0.700" in said
    without = validate(bundle, data={"head": inside}, general=[far], reference=False)
    assert without.passed, "a warning is no gate"
    assert any("WARNING" in note for note in without.notes)


def test_general_rows_need_rows_in_domain_and_labels_that_fit(bundle: Path, answered: Callable[..., Examples]) -> None:
    far = answered(20, 0.7, 3, "far.csv")
    with pytest.raises(InputError, match="none were given: --data NAME=FILE"):
        validate(bundle, general=[far], reference=False)
    other = Examples(far.texts, ("sports",) * 20, source="other.csv")
    with pytest.raises(
        DataError, match=r"other.csv, row 1: label 'sports' .*fit no adapter that has rows in its domain \(head\)"
    ):
        validate(bundle, data={"head": far}, general=[other], reference=False)
    done = CliRunner().invoke(main, ["validate", str(bundle), "--max-general-drop", "0.1"])
    assert (done.exit_code, "none are given" in done.stderr) == (2, True)


def test_a_base_with_the_same_head_is_compared(models: Models, tmp_path: Path) -> None:
    base = models("bert", labels=3)
    (bundle,) = export(base, {"own": save_lora(tmp_path / "own", base, scale=0.3)}, tmp_path / "b").bundles
    model = runtime.open(bundle.path)
    words = texts(200, 7)
    labels = tuple(found.label for found in model.base.predict(words))  # what the base answers is right here
    far = Examples(tuple(words), labels, source="far.csv")
    inside = Examples(
        tuple(texts(50, 8)), tuple(p.label for p in model.adapter("own").predict(texts(50, 8))), source="in.csv"
    )
    result = validate(
        bundle, data={"own": inside}, general=[far], rules=GeneralizationRules(max_forgetting=0.01), reference=False
    )
    out = result.generalization[-1]
    assert out.base is not None
    assert out.forgetting is not None
    assert out.base.estimate == 1.0
    assert out.forgetting.estimate == pytest.approx(1 - out.score.estimate)
    assert out.forgetting.estimate > 0.05, "the adapter must change answers for this test"
    assert [g.verdict for g in result.gates if "forgetting" in g.name] == [Verdict.FAIL]
    assert any("the gain in domain is paid for here" in note for note in result.notes)


def test_a_targets_limits_judge_rows_that_run_here(bundle: Path, answered: Callable[..., Examples]) -> None:
    target = load_target("ios-coreml")  # nothing executes it: static checks, and these
    target = target.model_copy(update={"generalization": GeneralizationRules(max_drop=0.05)})
    inside, far = answered(300, 0.9, 1, "in.csv"), answered(300, 0.7, 3, "far.csv")
    report = validate_on(bundle, target, general=[far], inside={"head": inside}, reference=False, variants=["fp32"])
    verdicts = {gate.name: gate.verdict for gate in report.gates}
    assert verdicts["generalization drop: head fp32 on far.csv"] is Verdict.FAIL
    assert report.data["generalization"][1]["drop"]["value"] == pytest.approx(0.2)
    assert any(table.title.startswith("Generalization") for table in report.tables)
    assert any("does not carry over" in note for note in report.notes)


def test_a_language_models_perplexity_rises_over_the_bases(tmp_path: Path) -> None:
    bundle = build_causal_bundle(tmp_path)
    rows = tmp_path / "general.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(12, 1)))
    name = runtime.open(bundle).adapters[0]
    result = validate(bundle, only=[name], general=[read_language_rows(rows)], reference=False)
    (found,) = result.generalization
    assert found.base is not None
    assert found.forgetting is not None
    assert (found.domain, found.metric.name, found.drop) == ("out", "perplexity", None)
    assert found.forgetting.estimate == pytest.approx(found.score.estimate / found.base.estimate - 1)
    assert found.forgetting.lower <= found.forgetting.estimate <= found.forgetting.upper


def scored(right: np.ndarray, data: str) -> Any:
    """Accuracy of rows of which ``right`` are right."""
    outputs = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    return measure(Scored("reviews", "fp32", data, "label", np.zeros(len(right), np.int64), outputs))[0]


@pytest.mark.parametrize(("accuracy", "warned"), [(0.69, 20), (0.76, 20), (0.90, 0)])
def test_the_warning_over_twenty_seeds(accuracy: float, warned: int) -> None:
    """What the Amazon adapter reaches on movie and NYT rows always warns; another split of the same source never does."""
    said = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        inside, outside = scored(rng.random(500) < 0.90, "in"), scored(rng.random(500) < accuracy, "out")
        said += bool(compared(outside, None, inside, False).warnings(GeneralizationRules()))
    assert said == warned
