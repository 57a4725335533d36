"""One encoder, several tasks: heads of sequences, tokens, questions and features as adapter parts of one bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import build_model
from shared_base import KINDS, load, save_adapter

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.errors import AdapterMismatchError, InputError, ManifestError
from edgepeft.pipeline import Head, add, blend, export, quantize, validate, write_input_style
from edgepeft.runtime.answers import best_span

TEXTS = ["the film was very good", "a poor plot", "not fine ."]
QUESTIONS = [("was the plot good", "the film was very good , the plot was poor ."), ("what was bad", "a bad end")]
#: Rounding of two implementations on numbers around 1.
CLOSE = 1e-5


def peft_outputs(base: Path, adapter: Path, kind: str, inputs: dict[str, np.ndarray]) -> Any:
    """What the adapter's own model computes: without PEFT's ``forward``, which drops the token types of questions."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(load(base, kind), adapter).eval().get_base_model()
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()})


def make(folder: Path, architecture: str, kinds: list[str]) -> tuple[Path, dict[str, Path], Path]:
    base = build_model(folder / "base", architecture, encoder_only=True)
    adapters = {kind: save_adapter(base, folder / kind, kind, architecture) for kind in kinds}
    export(base, adapters, folder / "b", heads={"intent": Head(("yes", "no", "other"))})
    return base, adapters, folder / "b"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], Path]:
    return make(tmp_path_factory.mktemp("shared"), "bert", list(KINDS))


@pytest.fixture
def copy(made: tuple[Path, dict[str, Path], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[2], tmp_path / "copy"))


def check(base: Path, adapters: dict[str, Path], model: runtime.Runtime) -> None:
    for kind, source in adapters.items():
        view = model.adapter(kind)
        inputs = view.encode(TEXTS)
        expected = peft_outputs(base, source, kind, inputs)
        found = view.forward(inputs)
        assert set(found) <= {"logits", "start_logits", "end_logits", "last_hidden_state"}
        for name, array in found.items():
            mask = inputs["attention_mask"].astype(bool)
            mine, theirs = array, expected[name].numpy()
            if mine.shape[:2] == mask.shape:
                mine, theirs = mine[mask], theirs[mask]
            assert np.abs(mine - theirs).max() < CLOSE, (kind, name)


def test_each_adapter_is_what_peft_computes_for_its_task(made: tuple[Path, dict[str, Path], Path]) -> None:
    base, adapters, bundle = made
    model = runtime.open(bundle)
    check(base, adapters, model)
    assert {name: model.adapter(name).task for name in adapters} == {
        "intent": "text-classification",
        "topics": "text-classification",
        "entities": "token-classification",
        "answers": "question-answering",
        "search": "feature-extraction",
    }
    assert model.base.task == "feature-extraction"
    assert len(list((bundle / "onnx").glob("*.onnx"))) == 1, "one graph, one encoder"


@pytest.mark.parametrize("architecture", ["distilbert", "roberta"])
def test_other_encoders(architecture: str, tmp_path: Path) -> None:
    base, adapters, bundle = make(tmp_path, architecture, ["intent", "entities", "search"])
    model = runtime.open(bundle)
    check(base, adapters, model)
    assert all(entry.per_row for entry in model.manifest.adapters.values())


def test_results_have_the_shape_of_the_task(made: tuple[Path, dict[str, Path], Path]) -> None:
    model = runtime.open(made[2])
    assert model.adapter("intent").predict(TEXTS[0]).label in {"yes", "no", "other"}
    tokens = model.adapter("entities").run(TEXTS[0])["tokens"]
    assert len(tokens) == len(model.encoder.tokens(TEXTS[0]))
    assert len(model.adapter("search").run(TEXTS[0])["embedding"]) == 32
    with pytest.raises(InputError, match="this bundle's task is token-classification; use encode and forward"):
        model.adapter("entities").predict(TEXTS)


def test_rows_of_several_tasks(made: tuple[Path, dict[str, Path], Path]) -> None:
    model = runtime.open(made[2])
    names = ["entities", "intent", "search", "topics", None, "entities"]
    texts = [TEXTS[place % 3] for place in range(len(names))]
    found = model.run(texts, adapters=names)
    for text, name, result in zip(texts, names, found, strict=True):
        alone = model.adapter(name).run(text)
        assert result.keys() == alone.keys()
        if "probabilities" in alone:
            assert result["probabilities"] == pytest.approx(alone["probabilities"], abs=CLOSE)
        if "embedding" in alone:
            assert result["embedding"] == pytest.approx(alone["embedding"], abs=CLOSE)
        if "tokens" in alone:
            assert [t["label"] for t in result["tokens"]] == [t["label"] for t in alone["tokens"]]
    with pytest.raises(
        InputError, match="for token-classification, text-classification, whose outputs differ in shape"
    ):
        model.forward(model.encode(texts[:2]), adapters=names[:2])
    with pytest.raises(
        InputError, match=r"different tasks have no blend \(intent: text-classification, entities: token-cl"
    ):
        model.adapter({"intent": 1.0, "entities": 1.0})


def test_answers_are_those_of_transformers_pipeline(made: tuple[Path, dict[str, Path], Path]) -> None:
    """The same span and score from the same logits; PEFT's model for questions gives no token types to its base."""
    import transformers

    base, adapters, bundle = made
    from peft import PeftModel

    merged = PeftModel.from_pretrained(load(base, "answers"), adapters["answers"]).merge_and_unload().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as PEFT's forward, which drops the types
    view = runtime.open(bundle).adapter("answers")
    for question, context in QUESTIONS:
        found = view.run([(question, context)])[0]
        inputs = {name: array for name, array in view.encode([(question, context)]).items() if name != "token_type_ids"}
        import torch

        with torch.no_grad():
            expected = merged(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        encoding = view.encoder.encoding((question, context))
        inside = np.array([part == 1 for part in encoding.sequence_ids])
        first, last, score = best_span(expected.start_logits[0].numpy(), expected.end_logits[0].numpy(), inside)
        assert found["score"] == pytest.approx(score, abs=CLOSE)
        assert found["answer"] == context[found["start"] : found["end"]]
        assert found["start"] <= encoding.offsets[first][0]
        assert found["end"] >= encoding.offsets[last][1]
    with pytest.raises(InputError, match=r"give a pair \(question, context\)"):
        view.run(["no pair"])


def test_the_best_span_is_the_largest_product() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        start, end = rng.standard_normal((2, 24)) * 2
        inside = np.arange(24) >= 5
        first, last, score = best_span(start, end, inside)
        sides = [np.exp(side) * inside / (np.exp(side) * inside).sum() for side in (start, end)]
        spans = {(i, j): sides[0][i] * sides[1][j] for i in range(24) for j in range(i, min(24, i + 15))}
        assert (first, last) == max(spans, key=lambda span: spans[span])
        assert score == pytest.approx(spans[first, last])


def test_the_base_of_each_task(made: tuple[Path, dict[str, Path], Path]) -> None:
    model = runtime.open(made[2])
    inputs = model.encode(TEXTS)
    assert set(model.base.forward(inputs)) == {"last_hidden_state"}
    untrained = model.adapter(None, task="token-classification")
    assert not untrained.forward(inputs)["logits"].any(), "nobody trained this head"
    assert untrained.labels_are_untrained
    with pytest.raises(InputError, match="is not for fill-mask; it is for: feature-extraction, text-classification"):
        model.adapter(None, task="fill-mask")
    with pytest.raises(InputError, match="an adapter has its own"):
        model.adapter("intent", task="text-classification")


def test_add_knows_the_tasks(made: tuple[Path, dict[str, Path], Path], copy: Path, tmp_path: Path) -> None:
    _, adapters, _ = made
    entry = add(copy, "more", adapters["entities"], head=Head(tuple("abcde"))).entry
    assert (entry.task, entry.labels) == ("token-classification", tuple("abcde"))
    model = runtime.open(copy, verify="always")
    inputs = model.encode(TEXTS)
    assert np.array_equal(
        model.adapter("more").forward(inputs)["logits"], model.adapter("entities").forward(inputs)["logits"]
    )
    again = add(copy, "file", copy / entry.onnx).entry
    assert again.task == "token-classification"
    unsaid = Path(shutil.copytree(adapters["entities"], tmp_path / "unsaid"))
    config = json.loads((unsaid / "adapter_config.json").read_text())
    (unsaid / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))
    with pytest.raises(InputError, match="does not say for which of the base's tasks it is"):
        add(copy, "unsaid", unsaid)
    (unsaid / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    with pytest.raises(AdapterMismatchError, match="was trained for text-generation"):
        add(copy, "unsaid", unsaid)
    mixed = blend(copy, {"intent": 0.5, "topics": 0.5}, "mix", head="intent")
    assert mixed.entry.task == "text-classification"  # type: ignore[union-attr] # into a bundle


def test_variants_and_plain_inputs_keep_every_task(copy: Path) -> None:
    quantize(copy, "int8")
    written = write_input_style(copy)  # compares both graphs, adapter by adapter
    assert written
    model, small = runtime.open(copy), runtime.open(copy, variant="int8")
    inputs = model.encode(TEXTS)
    for name in model.adapters:
        for output, array in model.adapter(name).forward(inputs).items():
            found = small.adapter(name).forward(inputs)[output]
            assert found.shape == array.shape
            # 8 bits a weight: far from noise, near the fp32 numbers.
            assert np.abs(found - array).mean() < 0.2 * np.abs(array).mean() + 0.05
    assert validate(copy).passed


def test_a_manifest_whose_tasks_lack_something(copy: Path) -> None:
    path = copy / "edgepeft.json"
    raw = json.loads(path.read_text())
    for change, says in (
        ({"outputs": raw["outputs"][:1]}, "reads output .* which is not listed under outputs"),
        ({"tasks": {}}, "is for .*; the base serves feature-extraction"),
        ({"task": "fill-mask"}, "task fill-mask"),
    ):
        path.write_text(json.dumps({**raw, **change}))
        with pytest.raises(ManifestError, match=says):
            read_bundle(copy)


def test_what_cannot_share_is_refused(made: tuple[Path, dict[str, Path], Path], tmp_path: Path) -> None:
    base, adapters, _ = made
    given = {name: adapters[name] for name in ("intent", "entities")}
    with pytest.raises(InputError, match="--mode merge folds each into a base of its own task"):
        export(base, given, tmp_path / "b", mode="merge")
    with pytest.raises(InputError, match="--onnx and layer_replication have no place"):
        export(base, given, tmp_path / "b", onnx=tmp_path / "none.onnx")
    with pytest.raises(InputError, match="text-generation takes a bundle of its own"):
        export(base, given, tmp_path / "b", task="text-classification,text-generation")


def test_tasks_for_adapters_to_come(made: tuple[Path, dict[str, Path], Path], tmp_path: Path) -> None:
    """``--task`` with commas makes slots for heads that no adapter of the export brings."""
    base, adapters, _ = made
    done = CliRunner().invoke(
        main,
        ["export", "--model", str(base), "--adapter", f"intent={adapters['intent']}", "--out", str(tmp_path / "b"),
         "--task", "text-classification,token-classification"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert add(tmp_path / "b", "entities", adapters["entities"]).changes_output
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "b")])
    assert "text-classification" in shown.output
    assert "token-classification" in shown.output


@pytest.mark.parametrize("trained", [False, True], ids=["a fresh head", "a trained head"])
def test_questions_alone(trained: bool, tmp_path: Path) -> None:
    """A bundle of one task that answers questions, over a bare encoder and over a checkpoint that answers by itself."""
    import transformers
    from conftest import randomize

    base = build_model(tmp_path / "base", encoder_only=True)
    if trained:
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(base)
        randomize(model, 4)
        model.save_pretrained(base)
    adapter = save_adapter(base, tmp_path / "answers", "answers")
    export(base, {"answers": adapter}, tmp_path / "b")
    model = runtime.open(tmp_path / "b")
    assert model.manifest.task == "question-answering"
    assert not model.manifest.tasks
    view = model.adapter("answers")
    inputs = view.encode(QUESTIONS)
    expected = peft_outputs(base, adapter, "answers", inputs)
    mask = inputs["attention_mask"].astype(bool)
    for name, array in view.forward(inputs).items():
        assert np.abs(array - expected[name].numpy())[mask].max() < CLOSE
    for (_, context), found in zip(QUESTIONS, view.run(QUESTIONS), strict=True):
        assert found["answer"] == context[found["start"] : found["end"]] != ""
    merged = export(base, {"answers": adapter}, tmp_path / "m", mode="merge")
    assert merged.parity[0].max_difference < 1e-4
