"""What ``validate`` says of adapters that look wrong though each runs as it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, Models, save_lora

from edgepeft import runtime
from edgepeft.data import Examples
from edgepeft.metrics import Scored
from edgepeft.pipeline import add, validate
from edgepeft.report.gate import Verdict
from edgepeft.validate.detectors import permuted_labels

_RNG = np.random.default_rng(0)
TEXTS = tuple(" ".join(_RNG.choice(WORDS, _RNG.integers(1, 12))) for _ in range(60))


def test_an_adapter_that_changes_nothing_and_one_that_is_another(
    own_bundle: Path, checkpoints: dict[str, Path]
) -> None:
    add(own_bundle, "again", checkpoints["dora"])
    add(own_bundle, "untrained", checkpoints["untrained"])
    result = validate(own_bundle, reference=False)
    assert [(gate.name, gate.verdict) for gate in result.gates if not gate.ok] == [
        ("changes the output untrained", Verdict.FAIL)
    ]
    (said,) = [note for note in result.notes if "WARNING" in note]
    assert "adapter again gives the outputs of dora, bit for bit" in said
    clean = validate(own_bundle, only=["plain", "head", "dora"], reference=False)
    assert (clean.passed, clean.notes) == (True, ())


def test_labels_in_another_order(own_bundle: Path) -> None:
    answers = [found.label for found in runtime.open(own_bundle).adapter("head").predict(TEXTS)]
    assert len(set(answers)) >= 2, "the test needs more than one class"
    moved = dict(zip("abcde", "bcdea", strict=True))
    rows = Examples(TEXTS, tuple(moved[label] for label in answers), source="rows.csv")
    (said,) = validate(own_bundle, data={"head": rows}, reference=False).notes
    assert "the labels of head look permuted: accuracy on rows.csv is 0.000, and 1.000 with the order" in said
    right = Examples(TEXTS, tuple(answers), source="rows.csv")
    assert validate(own_bundle, data={"head": right}, reference=False).notes == ()


@pytest.mark.parametrize("labels", [2, 4, 9])
def test_permutations_are_found_and_weak_models_are_not_accused(labels: int) -> None:
    rng = np.random.default_rng(labels)
    expected = rng.integers(0, labels, 600)
    names = tuple(f"n{place}" for place in range(labels))

    def scored(chosen: np.ndarray) -> Scored:
        return Scored("a", "fp32", "rows", "label", expected, np.eye(labels)[chosen], names)

    right = np.where(rng.random(600) < 0.8, expected, rng.integers(0, labels, 600))
    order = np.roll(np.arange(labels), 1)
    assert "look permuted" in permuted_labels(scored(order[right]))
    assert permuted_labels(scored(right)) == ""
    for seed in range(20):  # a model that knows nothing
        assert permuted_labels(scored(np.random.default_rng(seed).integers(0, labels, 600))) == ""
    assert permuted_labels(scored(np.zeros(600, np.int64))) == ""


def test_a_checkpoint_of_another_base(
    own_bundle: Path, checkpoints: dict[str, Path], models: Models, tmp_path: Path
) -> None:
    recorded = Path(shutil.copytree(checkpoints["plain"], tmp_path / "recorded"))
    (recorded / "edgepeft_adapter.json").write_text(json.dumps({"base_identity": "f" * 64}))
    other = save_lora(tmp_path / "foreign", models("bert", seed=4))
    given = {"plain": recorded, "dora": checkpoints["dora"], "head": other}
    from edgepeft.bundle import read_bundle
    from edgepeft.validate.detectors import other_bases

    bundle = read_bundle(own_bundle)
    said = other_bases(bundle, given)
    assert len(said) == 2
    assert "adapter plain was trained on a base with identity ffffffffffffffff…" in said[0]
    assert "adapter head says that it was trained on" in said[1]
