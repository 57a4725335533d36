"""Training against the rounded weights of a bundle's variant: that they are the very ones, and what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train_language as language
from test_train import make_rows, model, train  # noqa: F401 - the fixture is this module's too
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401

from edgepeft.errors import InputError
from edgepeft.train import ADAPTER_FILE


@pytest.fixture(scope="module")
def bundles(
    model: Path,  # noqa: F811
    language_model: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """An encoder in int8, and a language model in q4 fitted to texts, with biases and a correction."""
    from edgepeft.pipeline import export, quantize

    folder = tmp_path_factory.mktemp("bundles")
    export(model, {}, folder / "encoder", task="text-classification", slots="all-linear")
    quantize(folder / "encoder", "int8")
    export(language_model, {}, folder / "language", slots="all-linear")
    quantize(folder / "language", "q4", heal=2, measure=False)
    quantize(folder / "language", "int8")
    return {"encoder": folder / "encoder", "language": folder / "language"}


def logits_of(bundle: Path, variant: str, ids: np.ndarray) -> np.ndarray:
    """The variant's own numbers, its weights read back and multiplied in floats: the graph run with activations as they are."""
    import onnx
    import onnxruntime as ort

    path = bundle / "onnx" / f"model_{variant}.onnx"
    loaded = onnx.load(str(path))
    for node in loaded.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 1  # activations in float32
    session = ort.InferenceSession(loaded.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            feeds[value.name] = ids
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones_like(ids)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(ids.shape[1])[None]
        elif value.name.startswith("past"):
            shape = [size if isinstance(size, int) else 1 if at == 0 else 0 for at, size in enumerate(value.shape)]
            feeds[value.name] = np.zeros(shape, np.float32)
    return session.run(["logits"], feeds)[0]


def test_the_weights_are_those_that_ship(language_model: Path, bundles: dict[str, Path]) -> None:  # noqa: F811
    """PyTorch with the weights read back gives what ONNX Runtime gives of the variant in float32 activations."""
    import torch

    from edgepeft.train.base import load_language_base
    from edgepeft.train.deployed import DeployedWeights

    base = load_language_base(language_model)
    ids = np.random.default_rng(0).integers(3, 200, size=(1, 24))
    with torch.no_grad():
        own = base.model(input_ids=torch.from_numpy(ids)).logits.numpy()
        rounded = DeployedWeights(base, bundles["language"], "q4")
        found = base.model(input_ids=torch.from_numpy(ids)).logits.numpy()
        with rounded.floats():
            back = base.model(input_ids=torch.from_numpy(ids)).logits.numpy()
    wanted = logits_of(bundles["language"], "q4", ids)
    # Two blocks of seven linear layers, and the embedding that is the head.
    assert rounded.layers == 2 * 7 + 1
    # Corrections are held in float16 in the file; the rest is float32 against float32.
    assert found == pytest.approx(wanted, abs=2e-3 * float(np.abs(wanted).max()))
    assert np.abs(own - wanted).max() > 10 * np.abs(found - wanted).max()
    assert np.array_equal(own, back)


def assert_same(found: Any, expected: Any) -> None:
    """To the last bit; a GPU adds a bias (here of zeros) in another kernel, which may round otherwise."""
    from edgepeft.train.device import training_device

    if training_device().type == "cpu":
        assert found == expected
    else:
        assert found.nll == pytest.approx(expected.nll, rel=1e-5)


@pytest.mark.parametrize("variant", ["q4", "int8"])
def test_a_language_model_is_measured_on_both(
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    bundles: dict[str, Path],
    variant: str,
) -> None:
    data = language.write(tmp_path / "d.jsonl", language.rows(60))
    held = language.write(tmp_path / "h.jsonl", language.others(20, 5))
    options: dict[str, Any] = {"validation": held, "epochs": 3}
    plain = language.train(language_model, data, tmp_path / "plain", **options)
    found = language.train(
        language_model, data, tmp_path / "a", deploy_variant=variant, bundle=bundles["language"], **options
    )
    assert found.deployed is not None
    assert found.deployed.variant == variant
    assert_same(found.deployed.fp32_before, plain.before)
    assert found.before != plain.before
    assert found.after.nll < found.before.nll
    assert found.deployed.fp32_after.nll < found.deployed.fp32_before.nll
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())
    assert record["deployed"]["fp32_after"]["nll"] == pytest.approx(found.deployed.fp32_after.nll)
    assert str(found.deployed).startswith(f"trained and measured on {variant} (15 rounded layers); on fp32 perplexity")


def test_a_classifier_is_added_to_the_bundle(model: Path, tmp_path: Path, bundles: dict[str, Path]) -> None:  # noqa: F811
    """The adapter that was trained on int8 is added to that bundle, and is right there as often as training said."""
    import shutil

    from edgepeft import runtime
    from edgepeft.pipeline import add

    held = make_rows(80, seed=5)
    found = train(model, tmp_path / "a", validation=held, epochs=6, deploy_variant="int8", bundle=bundles["encoder"])
    assert found.deployed is not None
    # Six linear layers in each of two blocks and the pooler; tables of 64 positions are small and stay.
    assert found.deployed.layers >= 2 * 6 + 1
    shutil.copytree(bundles["encoder"], tmp_path / "b")
    add(tmp_path / "b", "mine", tmp_path / "a")
    answers = runtime.open(tmp_path / "b", variant="int8").adapter("mine").predict(list(held.texts))
    right = sum(answer.label == label for answer, label in zip(answers, held.labels or (), strict=True))
    # Activations are rounded too where it runs, which training does not see.
    assert abs(right - found.after.accuracy * len(held)) <= 4


def test_what_is_refused(model: Path, language_model: Path, tmp_path: Path, bundles: dict[str, Path]) -> None:  # noqa: F811
    with pytest.raises(InputError, match="--deploy-variant q4 needs --bundle"):
        train(model, tmp_path / "a", deploy_variant="q4")
    with pytest.raises(InputError, match="name the variant too"):
        train(model, tmp_path / "a", bundle=bundles["encoder"])
    with pytest.raises(InputError, match=r"has no variant 'q4'; it has fp32, int8"):
        train(model, tmp_path / "a", deploy_variant="q4", bundle=bundles["encoder"])
    with pytest.raises(InputError, match="rounds no weights"):
        train(model, tmp_path / "a", deploy_variant="fp32", bundle=bundles["encoder"])
    with pytest.raises(InputError, match="is of another base"):
        train(model, tmp_path / "a", deploy_variant="q4", bundle=bundles["language"])
