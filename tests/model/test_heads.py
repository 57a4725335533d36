"""What heads mean: names of labels, problem types and activations, from folders, options and the base, over every kind of head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import build_model, randomize

from edgepeft import runtime
from edgepeft.cli import main
from edgepeft.data import Examples, read_examples
from edgepeft.errors import AdapterError, AdapterMismatchError, InputError
from edgepeft.pipeline import Head, add, blend, export, relabel, validate
from edgepeft.runtime import MultiLabelPrediction, Prediction, Score

TEXTS = ["the film was very good", "a poor plot", "not fine ."]
PAIRS = [("good film", "the plot was fine"), ("good film", "an awful end"), ("good film", "very poor")]
#: The difference of two roundings of the same formula in double and single precision.
CLOSE = 1e-5


def save_adapter(
    base: Path, folder: Path, *, labels: int, seed: int = 3, modules: list[str] | None = None, **config: Any
) -> Path:
    """A LoRA with random numbers over ``base``, its head included."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    options = {
        "task_type": "SEQ_CLS",
        "r": 4,
        "target_modules": ["query", "value"],
        "modules_to_save": modules,
        **config,
    }
    wrapped = get_peft_model(model, LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    wrapped.save_pretrained(folder)
    return folder


def set_config(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        config.pop(key, None) if value is None else config.update({key: value})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def names_of(*labels: str) -> dict[str, Any]:
    return {"id2label": {str(i): n for i, n in enumerate(labels)}, "label2id": {n: i for i, n in enumerate(labels)}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labels with names, several of which may hold."""
    folder = build_model(tmp_path_factory.mktemp("many") / "base", labels=3)
    return set_config(folder, problem_type="multi_label_classification", **names_of("toxic", "insult", "spam"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of one output whose bias is zero, as a fresh one is."""
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = build_model(tmp_path_factory.mktemp("one") / "base", labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    sources = {"same": 3, "wide": 5}
    adapters = {name: save_adapter(base, folder / name, labels=n, seed=n) for name, n in sources.items()}
    export(base, adapters, folder / "b")
    return folder / "b"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def pipeline_scores(base: Path, adapter: Path, texts: list[str], labels: int) -> list[dict[str, float]]:
    """What transformers' own pipeline says of the merged model, by label."""
    import transformers
    from peft import PeftModel

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, ignore_mismatched_sizes=True
    )
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    pipe = transformers.pipeline(
        "text-classification", model=merged, tokenizer=transformers.AutoTokenizer.from_pretrained(base), top_k=None
    )
    return [{each["label"]: each["score"] for each in row} for row in pipe(texts)]


def test_several_labels_are_what_transformers_pipeline_gives(base: Path, bundle: Path) -> None:
    model = runtime.open(bundle)
    for name, count in (("same", 3), ("wide", 5)):
        source = Path(model.manifest.adapters[name].source)
        found = model.adapter(name).predict(TEXTS)
        for mine, expected in zip(found, pipeline_scores(base, source, TEXTS, count), strict=True):
            assert isinstance(mine, MultiLabelPrediction)
            assert mine.probabilities.keys() == expected.keys()
            assert max(abs(mine.probabilities[label] - expected[label]) for label in expected) < CLOSE
            chosen = sorted((label for label in expected if expected[label] > 0.5), key=lambda label: -expected[label])
            assert list(mine.labels) == chosen
            assert mine.score == max(mine.probabilities.values())
    assert model.adapter("same").labels == ("toxic", "insult", "spam")
    assert model.base.predict(TEXTS[0]).probabilities.keys() == {"toxic", "insult", "spam"}


def test_a_threshold_chooses(bundle: Path) -> None:
    view = runtime.open(bundle).adapter("wide")
    every = view.predict(TEXTS[0], threshold=0.0)
    assert isinstance(every, MultiLabelPrediction)
    assert set(every.labels) == set(every.probabilities)
    assert list(every.labels) == sorted(every.probabilities, key=lambda label: -every.probabilities[label])
    assert view.run(TEXTS[0], threshold=1.0)["labels"] == []
    for wrong in (-0.1, 1.5, "high", True):
        with pytest.raises(InputError, match="threshold must lie between 0 and 1"):
            view.predict(TEXTS[0], threshold=wrong)  # type: ignore[arg-type] # what a user may pass


def test_rows_of_one_batch_have_heads_of_their_own(bundle: Path) -> None:
    model = runtime.open(bundle)
    found = model.predict(TEXTS, adapters=["wide", "same", "wide"])
    for prediction, name, text in zip(found, ("wide", "same", "wide"), TEXTS, strict=True):
        alone = model.adapter(name).predict(text)
        assert isinstance(prediction, MultiLabelPrediction)
        assert prediction.probabilities.keys() == alone.probabilities.keys()
        assert max(abs(prediction.probabilities[n] - alone.probabilities[n]) for n in alone.probabilities) < CLOSE


def test_relabel_names_and_changes_kinds(copy: Path) -> None:
    before = runtime.open(copy).adapter("wide").logits(TEXTS)
    identity = runtime.open(copy).manifest.slots.hash
    relabel(copy, {"wide": Head(tuple("abcde"), "single_label_classification")})
    view = runtime.open(copy, verify="always").adapter("wide")
    assert np.array_equal(view.logits(TEXTS), before)
    assert view.manifest.slots.hash == identity
    assert view.labels == tuple("abcde")
    found = view.predict(TEXTS[0])
    assert type(found) is Prediction
    assert sum(found.probabilities.values()) == pytest.approx(1)
    # The names travel in the adapter's own file.
    entry = view.manifest.adapters["wide"]
    added = add(copy, "again", copy / entry.onnx)
    assert added.entry.labels == tuple("abcde")
    assert added.entry.problem_type == "single_label_classification"
    assert blend(copy, {"wide": 0.5}, "half").entry.labels == tuple("abcde")  # type: ignore[union-attr] # a bundle


def test_relabel_the_base(copy: Path) -> None:
    relabel(copy, {"base": Head(("x", "y", "z"))})
    model = runtime.open(copy, verify="always")
    assert model.base.labels == ("x", "y", "z")
    assert model.adapter("same").labels == ("toxic", "insult", "spam"), "an adapter keeps the names it was given"
    assert json.loads((copy / "config.json").read_text())["id2label"]["2"] == "z"


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ({}, "nothing to change"),
        ({"none": Head(("a",))}, "has no adapter 'none'; it has: same, wide, base"),
        ({"wide": Head(("a", "b"))}, r"names 2 labels \(a, b\), its head has 5"),
        ({"same": Head(("a", "b", "a"))}, "names the label 'a' twice"),
    ],
)
def test_relabel_refuses(copy: Path, heads: dict[str, Head], says: str) -> None:
    before = (copy / "edgepeft.json").read_bytes()
    with pytest.raises(InputError, match=says):
        relabel(copy, heads)
    assert (copy / "edgepeft.json").read_bytes() == before


Write = Callable[[Path], None]
BESIDE: dict[str, tuple[Write, tuple[str, ...]]] = {
    "config": (lambda f: (f / "config.json").write_text(json.dumps(names_of("n", "o", "p"))) and None, ("n", "o", "p")),
    "text": (lambda f: (f / "labels.txt").write_text("n\no, or so\np\n") and None, ("n", "o, or so", "p")),
    "list": (lambda f: (f / "labels.json").write_text('["n", "o", "p"]') and None, ("n", "o", "p")),
    "numbers": (lambda f: (f / "id2label.json").write_text('{"2": "p", "0": "n", "1": "o"}') and None, ("n", "o", "p")),
    "names": (lambda f: (f / "labels.json").write_text('{"p": 2, "n": 0, "o": 1}') and None, ("n", "o", "p")),
    "record": (lambda f: (f / "edgepeft_adapter.json").write_text('{"labels": ["n", "o", "p"]}') and None, ("n", "o", "p")),
    "another config": (
        lambda f: (f / "config.json").write_text(json.dumps(names_of("a", "b"))) and None,
        ("toxic", "insult", "spam"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_names_from_files_beside_the_adapter(copy: Path, base: Path, tmp_path: Path, kind: str) -> None:
    write, expected = BESIDE[kind]
    folder = save_adapter(base, tmp_path / "lora", labels=3)
    write(folder)
    said: list[str] = []
    assert add(copy, "new", folder, announce=said.append).entry.labels == expected
    assert any("labels" in line for line in said) == (kind != "record"), said


def test_names_from_the_folder_of_the_run(copy: Path, base: Path, tmp_path: Path) -> None:
    """Trainer's ``checkpoint-500``: the names lie beside it."""
    folder = save_adapter(base, tmp_path / "run" / "checkpoint-500", labels=3)
    (tmp_path / "run" / "labels.txt").write_text("n\no\np\n")
    assert add(copy, "new", folder).entry.labels == ("n", "o", "p")
    other = Path(shutil.copytree(folder, tmp_path / "run" / "lora"))
    assert add(copy, "other", other).entry.labels == ("toxic", "insult", "spam")


def test_a_broken_label_file_is_named(copy: Path, base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "lora", labels=3)
    (folder / "labels.json").write_text('{"0": "n", "2": "p"}')
    with pytest.raises(AdapterError, match=r"labels\.json: labels must be numbered 0 to 1, found \[0, 2\]"):
        add(copy, "new", folder)


def test_options_win_and_must_fit(copy: Path, base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "lora", labels=3)
    (folder / "labels.txt").write_text("n\no\np\n")
    entry = add(copy, "new", folder, head=Head(("x", "y", "z"), activation="softmax")).entry
    assert (entry.labels, entry.problem_type, entry.activation) == (
        ("x", "y", "z"),
        "multi_label_classification",
        "softmax",
    )
    with pytest.raises(AdapterMismatchError, match="3 labels, its record names 2"):
        add(copy, "other", folder, head=Head(("x", "y")))


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_the_command_line(copy: Path, base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "lora", labels=3)
    (tmp_path / "names.txt").write_text("first, of all\nsecond\nthird\n")
    options = ("--labels", f"new={tmp_path / 'names.txt'}", "--problem-type", "new=single_label")
    done = run("add", copy, "--adapter", f"new={folder}", *options, "--force")
    assert done.exit_code == 0, done.output
    assert "first, of all" in done.stdout
    done = run("relabel", copy, "--labels", "new=a,b,c", "--activation", "new=sigmoid", "--json")
    assert json.loads(done.stdout) == {
        "new": {"labels": ["a", "b", "c"], "problem_type": "single_label_classification", "activation": "sigmoid"}
    }
    assert run("run", copy, TEXTS[0], "--adapter", "same", "--threshold", "1").stdout.startswith("(none)\t")
    for arguments, says in (
        (("--labels", "nobody=a,b"), "there is none 'nobody'"),
        (("--labels", "x=nowhere.txt"), "there is no file nowhere.txt"),
        (("--problem-type", "x=ranking"), "problem type 'ranking' is unknown"),
        (("--activation", "x=relu"), "activation 'relu' is unknown"),
    ):
        failed = run("add", copy, "--adapter", f"x={folder}", *arguments)
        assert failed.exit_code == 2
        assert says in failed.stderr


def test_data_have_names_or_numbers(copy: Path) -> None:
    relabel(copy, {"same": Head(problem_type="single_label_classification")})
    view = runtime.open(copy).adapter("same")
    answers = [prediction.label for prediction in view.predict(TEXTS)]
    numbers = [str((view.labels or ()).index(label)) for label in answers]
    for labels in (answers, numbers):
        data = {"same": Examples(tuple(TEXTS), tuple(labels))}
        assert [row.accuracy for row in validate(copy, data=data, reference=False).accuracy] == [1.0]
    with pytest.raises(
        InputError, match=r"row 2: label '7' is not one of the adapter's: toxic, insult, spam \(or 0 to 2\)"
    ):
        validate(copy, data={"same": Examples(tuple(TEXTS[:2]), ("1", "7"))}, reference=False)


def peft_logits(base: Path, adapter: Path, inputs: dict[str, np.ndarray], labels: int) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    wrapped = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        found = wrapped(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    logits: np.ndarray = found.logits.numpy()
    return logits


@pytest.mark.parametrize("mode", ["swap", "merge", "bake"])
def test_a_cross_encoder_scores_pairs(one: Path, tmp_path: Path, mode: Any) -> None:
    """One output whose bias is found behind its weight; the sigmoid is what sentence-transformers' CrossEncoder takes."""
    adapter = save_adapter(one, tmp_path / "rank", labels=1)
    export(one, {"rank": adapter}, tmp_path / "b", mode=mode)
    view = runtime.open(tmp_path / "b").adapter("rank")
    logits = peft_logits(one, adapter, view.encode(PAIRS), 1)[:, 0]
    assert np.abs(view.logits(PAIRS)[:, 0] - logits).max() < CLOSE
    scores = view.predict(PAIRS)
    assert all(isinstance(each, Score) for each in scores)
    assert np.abs(np.array([each.score for each in scores]) - 1 / (1 + np.exp(-logits))).max() < CLOSE
    assert len({round(each.score, 6) for each in scores}) == len(PAIRS)
    assert [each.as_dict()["logits"]["LABEL_0"] for each in scores] == pytest.approx(logits.tolist(), abs=CLOSE)


ACTIVATIONS = {
    "sentence-transformers 4": ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
    "sentence-transformers 3": (
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
        "sigmoid",
    ),
    "regression": ({"problem_type": "regression"}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_activation_is_the_configs(one: Path, tmp_path: Path, kind: str) -> None:
    values, expected = ACTIVATIONS[kind]
    folder = set_config(Path(shutil.copytree(one, tmp_path / "base")), **values)
    export(folder, {"rank": save_adapter(folder, tmp_path / "rank", labels=1)}, tmp_path / "b")
    view = runtime.open(tmp_path / "b").adapter("rank")
    assert view.manifest.adapters["rank"].activation == expected
    (score,) = view.predict([TEXTS[0]])
    assert isinstance(score, Score)
    logit = float(view.logits(TEXTS[0])[0])
    assert score.score == pytest.approx(1 / (1 + np.exp(-logit)) if expected == "sigmoid" else logit)
    shown = run("run", tmp_path / "b", TEXTS[0], "--adapter", "rank").stdout
    assert shown == f"{score.score:.4f}\t{TEXTS[0]}\n"


def test_a_head_of_one_output_over_a_base_of_three(base: Path, copy: Path, tmp_path: Path) -> None:
    """The problem type of three labels does not suit one number."""
    adapter = save_adapter(base, tmp_path / "rank", labels=1)
    add(copy, "rank", adapter)
    view = runtime.open(copy).adapter("rank")
    found = view.predict(TEXTS)
    logits = peft_logits(base, adapter, view.encode(TEXTS), 1)[:, 0]
    assert [type(each) for each in found] == [Score] * len(TEXTS)
    assert np.abs(np.array([each.score for each in found]) - 1 / (1 + np.exp(-logits))).max() < CLOSE


def test_adapters_of_another_task_are_refused(base: Path, copy: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=3)
    randomize(model, 5)
    wrapped = get_peft_model(model, LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["query"]))
    wrapped.save_pretrained(tmp_path / "tags")
    said = r"'tags' \(.*\) was trained for token-classification \(task_type TOKEN_CLS"
    with pytest.raises(AdapterMismatchError, match=said):
        add(copy, "tags", tmp_path / "tags")
    with pytest.raises(AdapterMismatchError, match=said):
        export(base, {"tags": tmp_path / "tags"}, tmp_path / "b", task="text-classification")


def test_a_fresh_part_that_nobody_brings_is_named(tmp_path: Path) -> None:
    """DeBERTa-v3's checkpoint has neither pooler nor head, and PEFT saves the head alone."""
    folder = build_model(tmp_path / "base", "deberta-v2", encoder_only=True)
    plain = save_adapter(folder, tmp_path / "plain", labels=2, target_modules=["query_proj"])
    with pytest.raises(
        AdapterMismatchError, match=r"does not hold pooler\.dense\.bias, pooler\.dense\.weight and adapter 'plain'"
    ):
        export(folder, {"plain": plain}, tmp_path / "b")
    full = save_adapter(
        folder, tmp_path / "full", labels=2, target_modules=["query_proj"], modules=["pooler", "classifier"]
    )
    export(folder, {"full": full}, tmp_path / "b", slots="all-linear")
    view = runtime.open(tmp_path / "b").adapter("full")
    assert np.abs(view.logits(TEXTS) - peft_logits(folder, full, view.encode(TEXTS), 2)).max() < CLOSE


def rows_file(path: Path, labels: list[Any]) -> Path:
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, labels, strict=True)]
    path.write_text("\n".join(lines))
    return path


def test_sets_of_labels_are_judged_as_sets(copy: Path, tmp_path: Path) -> None:
    """A row is right where all of its labels are and no other; lists, separators, numbers and 0/1 vectors say the same."""
    view = runtime.open(copy).adapter("wide")
    found = [set(each["labels"]) for each in view.run(TEXTS)]
    names = list(view.labels or ())
    wrong = [names[0]] if found[-1] != {names[0]} else [names[1]]
    sets = [*map(sorted, found[:-1]), wrong]
    forms: list[list[Any]] = [
        sets,
        ["|".join(each) or "[]" for each in sets],
        [[names.index(label) for label in each] for each in sets],
        [[int(name in each) for name in names] for each in sets],
    ]
    for form in forms:
        data = {"wide": read_examples(rows_file(tmp_path / "rows.jsonl", form))}
        (row,) = validate(copy, data=data, reference=False).accuracy
        assert (row.hits, row.rows) == (2, 3), form
    checked = validate(copy, data=data)  # PEFT's checkpoints are where the manifest says
    assert checked.passed
    assert [(a.peft.hits, a.peft.same_label) for a in checked.accuracy if a.peft is not None] == [(2, 3)]
    bad = read_examples(rows_file(tmp_path / "rows.jsonl", [["LABEL_0"], ["nobody"], []]))
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: label 'nobody' is not one of the adapter's"):
        validate(copy, data={"wide": bad}, reference=False)


def test_numbers_are_judged_by_their_error(one: Path, tmp_path: Path) -> None:
    folder = set_config(Path(shutil.copytree(one, tmp_path / "base")), problem_type="regression")
    export(folder, {"rating": save_adapter(folder, tmp_path / "rating", labels=1)}, tmp_path / "b")
    view = runtime.open(tmp_path / "b").adapter("rating")
    given = [each.score for each in view.predict(TEXTS)]
    data = {"rating": read_examples(rows_file(tmp_path / "rows.jsonl", [given[0], given[1] + 0.5, given[2] - 1.0]))}
    result = validate(tmp_path / "b", data=data)
    (row,) = result.accuracy
    assert row.hits is None
    assert row.error == pytest.approx(0.5, abs=CLOSE)
    assert row.peft is not None
    assert row.peft.error == pytest.approx(0.5, abs=CLOSE)
    assert [gate.name for gate in result.gates if "error" in gate.name] == ["mean error rating fp32"]
    assert result.passed
    bad = read_examples(rows_file(tmp_path / "rows.jsonl", [1, "good", 2]))
    with pytest.raises(InputError, match=r"line 2: label 'good' is not a number, which is what this head gives"):
        validate(tmp_path / "b", data={"rating": bad}, reference=False)
