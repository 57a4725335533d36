"""edgepeft.train on a tiny random BERT: files, scores, reproducibility, and every refusal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_training import assert_same_weights

from edgepeft.data import Examples
from edgepeft.errors import DataError, InputError
from edgepeft.train import ADAPTER_FILE, train_adapter
from edgepeft.train.one_source import stratified_split
from edgepeft.train.problem import Problem, score

GOOD, BAD, FILL = ["good", "great", "fine"], ["bad", "awful", "poor"], ["the", "film", "book", "was", "very", "a"]


def make_rows(count: int, seed: int = 0) -> Examples:
    """Sentences that one word decides; every text is distinct."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        words = list(generator.choice(FILL, size=int(generator.integers(3, 9))))
        words[int(generator.integers(len(words)))] = str(generator.choice(GOOD if i % 2 else BAD))
        texts.append(" ".join([*words, *"".join(f"{i:04d}")]))
        labels.append("up" if i % 2 else "down")
    return Examples(tuple(texts), tuple(labels))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT, 2 layers of 32, random weights, encoder only: the classifier is fresh."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILL, *"0123456789"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(words),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
                initializer_range=0.2,
            )
        ).save_pretrained(folder)
    return folder


def train(model: Path, out: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-2, "threads": 1, "progress": False, **options}
    data = settings.pop("data", None)
    return train_adapter(model, make_rows(160) if data is None else data, out, **settings)


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_files_record_and_scores(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "sentiment"
    result = train(model, out, validation_fraction=0.25, epochs=8, patience=None)
    assert {path.name for path in out.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", ADAPTER_FILE}
    assert [path.name for path in out.parent.iterdir()] == ["sentiment"]

    record = json.loads((out / ADAPTER_FILE).read_text())
    assert record["format"] == 1
    assert record["task"] == "text-classification"
    assert record["labels"] == ["down", "up"] == list(result.labels)
    assert len(record["base_identity"]) == 64
    assert record["base_model"] == str(model)
    assert record["arguments"]["rank"] == 8
    assert set(record["versions"]) == {"python", "torch", "transformers", "peft"}
    assert record["trainable_parameters"] == result.trainable_parameters < record["total_parameters"]

    losses = record["metrics"]["train_loss"]
    assert len(losses) == result.epochs == 8
    assert losses[-1] < losses[0]
    assert result.after.loss < result.before.loss
    assert result.after.accuracy > 0.8
    assert (result.train_rows, result.validation_rows, result.truncated_rows) == (120, 40, 0)

    saved = tensors(out)
    assert all(np.abs(value).max() > 0 for name, value in saved.items() if "lora_B" in name)
    assert any(name.endswith("classifier.weight") for name in saved)
    # 2 layers x (query, value) x (A 8x32 + B 32x8), and the fresh head 2x32 + 2.
    assert result.trainable_parameters == 2 * 2 * 2 * 8 * 32 + 66 == sum(value.size for value in saved.values())


# PEFT 0.21.2 reads a property that transformers 5.23 renamed (November 2026); here it is the test that calls PEFT.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_saved_adapter_gives_the_scores_that_were_reported(model: Path, tmp_path: Path) -> None:
    """Head and LoRA both come from the files: a differently seeded fresh head must not matter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows, held = make_rows(120), make_rows(40, seed=9)
    result = train(model, tmp_path / "a", data=rows, validation=held)
    torch.manual_seed(77)
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    with torch.no_grad():
        inputs = AutoTokenizer.from_pretrained(model)(list(held.texts), padding=True, return_tensors="pt")
        logits = PeftModel.from_pretrained(base, tmp_path / "a").eval()(**inputs).logits
    ids = torch.tensor([result.labels.index(label) for label in held.labels or ()])
    # float32, batches padded differently: 1e-4 is far above rounding and far below a changed head.
    assert float(torch.nn.functional.cross_entropy(logits, ids)) == pytest.approx(result.after.loss, abs=1e-4)
    assert float((logits.argmax(-1) == ids).float().mean()) == pytest.approx(result.after.accuracy)


def test_same_seed_same_weights_and_other_seed_others(model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(model, tmp_path / name, seed=seed, epochs=1)
    a, c = (tensors(tmp_path / name) for name in "ac")
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not all(np.array_equal(a[name], c[name]) for name in a)


def test_global_random_state_and_threads_are_left_alone(model: Path, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(model, tmp_path / "a", epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_early_stopping_keeps_the_best_epoch(model: Path, tmp_path: Path) -> None:
    """At a learning rate of 1e-9 nothing improves after the first epoch."""
    result = train(model, tmp_path / "a", epochs=8, patience=1, learning_rate=1e-9)
    assert (result.epochs, result.best_epoch) == (2, 1)


def test_options_reach_the_adapter(model: Path, tmp_path: Path) -> None:
    train(model, tmp_path / "a", epochs=1, rank=4, alpha=32, use_dora=True, use_rslora=True, target_modules=["key"])
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"], config["use_rslora"]) == (4, 32, True, True)
    assert config["target_modules"] == ["key"]
    assert sorted(config["modules_to_save"]) == ["classifier", "score"]
    assert any("lora_magnitude_vector" in name for name in tensors(tmp_path / "a"))


def test_all_linear_leaves_the_head_whole(model: Path, tmp_path: Path) -> None:
    train(model, tmp_path / "a", epochs=1, target_modules="all-linear")
    names = tensors(tmp_path / "a")
    assert any("intermediate.dense.lora_A" in name for name in names)
    assert not any("classifier" in name and "lora" in name for name in names)


def test_distilbert_saves_both_fresh_modules(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    folder = tmp_path / "distilbert"
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64
    )
    DistilBertModel(config).save_pretrained(folder)
    train(folder, tmp_path / "a", epochs=1)
    names = tensors(tmp_path / "a")
    for parameter in ("pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"):
        assert any(name.endswith(f".{parameter}") for name in names)


def test_identity_is_the_bases_not_the_adapters(model: Path, tmp_path: Path) -> None:
    one = train(model, tmp_path / "a", epochs=1, seed=1)
    two = train(model, tmp_path / "b", epochs=1, seed=2, rank=2)
    assert one.base_identity == two.base_identity


def test_data_from_files_folders_and_pairs(model: Path, tmp_path: Path) -> None:
    import datasets

    rows = make_rows(60)
    columns = {"s1": list(rows.texts), "s2": ["the book"] * 60, "gold": [int(x == "up") for x in rows.labels or ()]}
    lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    features = datasets.Features(
        {
            "s1": datasets.Value("string"),
            "s2": datasets.Value("string"),
            "gold": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "folder"))
    options: dict[str, Any] = {"epochs": 1, "text": "s1", "pair": "s2", "label": "gold"}
    assert train(model, tmp_path / "a", data=tmp_path / "d.jsonl", **options).labels == ("0", "1")
    assert train(model, tmp_path / "b", data=tmp_path / "folder", **options).labels == ("no", "yes")
    assert json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())["arguments"]["data"] == str(tmp_path / "d.jsonl")
    with pytest.raises(DataError, match="no column 'text'; it has s1, s2, gold"):
        train(model, tmp_path / "c", data=tmp_path / "folder")


def test_an_adapter_is_replaced_and_anything_else_is_refused(model: Path, tmp_path: Path) -> None:
    first = train(model, tmp_path / "a", epochs=1, seed=1)
    before = tensors(first.folder)
    train(model, tmp_path / "a", epochs=1, seed=2)
    assert any(not np.array_equal(before[name], value) for name, value in tensors(first.folder).items())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not an adapter that edgepeft wrote"):
        train(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be greater than 0"),
        ({"dropout": 1.0}, "dropout must lie between"),
        ({"validation_fraction": 1.5}, "validation fraction must lie between 0 and 1"),
        ({"max_length": 4096}, "more than the 64 tokens"),
        ({"target_modules": ["q_proj", "value"]}, r"named 'q_proj'.*those that exist: .*query"),
        ({"target_modules": ["classifier"]}, "named 'classifier'"),
        ({"target_modules": []}, "all-linear"),
        ({"learning_rate": 1e38}, r"loss became (nan|inf).*lower the learning rate"),
        ({"data": Examples(("a", "b"), None)}, "without labels"),
        ({"data": Examples(tuple("abcdef"), ("x",) * 6)}, "all .* rows have the label 'x'"),
        ({"data": Examples(tuple("abcdefgh"), (*"xxxxxx", "y", "y"))}, r"label 'y' has 2 distinct row\(s\), too few"),
        ({"data": "no/such/file.csv"}, "cannot read data file"),
        ({"data": "no_such_dataset"}, "cannot load data 'no_such_dataset'"),
        ({"validation": Examples(tuple("abcd"), ("up", "up", "down", "left"))}, r"\['left'\] are not among"),
        ({"validation": Examples(tuple("abc"), ("up", "up", "down"))}, r"\['down'\] have fewer than 2"),
    ],
)
def test_refusals_say_what_is_wrong_and_write_nothing(
    model: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(model, tmp_path / "a", **options)
    assert list(tmp_path.iterdir()) == []


def test_bad_models(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    with pytest.raises(InputError, match=r"neither a folder with config.json nor a Hugging Face id"):
        train(tmp_path / "none", tmp_path / "a")
    folder = tmp_path / "padless"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="no pad token"):
        train(folder, tmp_path / "a")


def test_a_head_for_another_number_of_labels(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(model, num_labels=5).save_pretrained(tmp_path / "five")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "five")
    with pytest.raises(InputError, match=r"classifier\.weight do not fit 2 labels"):
        train(tmp_path / "five", tmp_path / "a")


def test_split_is_stratified_and_keeps_equal_texts_together() -> None:
    rows = Examples(tuple(f"t{i // 2}" for i in range(80)), tuple("x" if i // 2 % 4 else "y" for i in range(80)))
    train_rows, held = stratified_split(rows, 0.2, seed=0)
    assert not set(train_rows.texts) & set(held.texts)
    assert len(train_rows) + len(held) == 80
    assert ((held.labels or ()).count("x"), (held.labels or ()).count("y")) == (12, 4)
    assert stratified_split(rows, 0.2, seed=0) == (train_rows, held)
    assert stratified_split(rows, 0.2, seed=1) != (train_rows, held)


def test_score_against_hand_counts() -> None:
    """Label 0: F1 2*1/(1+2); label 1: 2*1/(2+1); label 2 is neither predicted nor present."""
    found = score(np.array([[9, 0, 0], [0, 9, 0], [0, 9, 0]]), np.array([0, 0, 1]))
    assert found == pytest.approx({"accuracy": 2 / 3, "macro_f1": 2 / 3})


def test_progress_goes_to_standard_error(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(model, tmp_path / "a", epochs=1, progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert "accuracy" in output.err


def test_without_a_bar_a_line_says_that_it_began_and_how_it_ended(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    train(model, tmp_path / "a", epochs=2, progress=None)
    found = capsys.readouterr()
    said = [line for line in found.err.splitlines() if line.startswith("train")]
    assert re.fullmatch(r"training: \d+ steps, at most 2 epochs", said[0])
    assert re.fullmatch(r"trained: \d+ steps in \d+ s; .*accuracy.*", said[1]), said
    assert len(said) == 2
    assert "train" not in found.out
    train(model, tmp_path / "b", epochs=1, progress=False)
    assert "training:" not in capsys.readouterr().err


def test_import_is_light() -> None:
    heavy = {"torch", "transformers", "peft", "datasets"}
    code = f"import sys, edgepeft.train, edgepeft.demo.assets; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def many_rows(count: int, seed: int = 0) -> Examples:
    """Two labels that words decide, each by itself; some rows have both and some none."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        words = [*generator.choice(FILL, size=4)]
        mine = [name for name, bit in (("praise", i & 1), ("blame", i & 2)) if bit]
        words += [str(generator.choice(GOOD))] * ("praise" in mine) + [str(generator.choice(BAD))] * ("blame" in mine)
        generator.shuffle(words)
        texts.append(" ".join([*map(str, words), *f"{i:04d}"]))
        labels.append("|".join(mine) or "[]")
    return Examples(tuple(texts), tuple(labels))


def test_several_labels_are_learnt_and_exported(model: Path, tmp_path: Path) -> None:
    from edgepeft import runtime
    from edgepeft.pipeline import export, validate
    from edgepeft.runtime import MultiLabelPrediction

    result = train(
        model,
        tmp_path / "many",
        data=many_rows(200),
        problem_type="multi_label_classification",
        epochs=15,
        patience=None,
    )
    assert result.labels == ("blame", "praise")
    assert result.before.accuracy < 0.6 < 0.85 < result.after.accuracy
    export(model, {"many": tmp_path / "many"}, tmp_path / "b")
    view = runtime.open(tmp_path / "b").adapter("many")
    found = view.predict("the film was good and awful")
    assert isinstance(found, MultiLabelPrediction)
    assert set(found.labels) == {"blame", "praise"}
    checked = validate(tmp_path / "b", data={"many": many_rows(60, seed=5)})
    assert checked.passed
    assert checked.accuracy[0].accuracy is not None
    assert checked.accuracy[0].accuracy > 0.8


def test_numbers_are_learnt_and_exported(model: Path, tmp_path: Path) -> None:
    from edgepeft import runtime
    from edgepeft.pipeline import export, validate
    from edgepeft.runtime import Score

    rows = make_rows(200)
    numbers = Examples(rows.texts, tuple("2.5" if label == "up" else "-1" for label in rows.labels or ()))
    result = train(model, tmp_path / "rate", data=numbers, problem_type="regression", label="rating", epochs=10)
    assert result.labels == ("rating",)
    assert (result.after.accuracy, result.after.macro_f1) == (None, None)
    assert result.after.mean_error < 0.5 < 1.0 < result.before.mean_error
    assert result.after.correlation > 0.9
    export(model, {"rate": tmp_path / "rate"}, tmp_path / "b")
    found = runtime.open(tmp_path / "b").adapter("rate").predict("the film was very good")
    assert isinstance(found, Score)
    assert found.values == {"rating": found.score}
    assert found.score > 1
    checked = validate(tmp_path / "b", data={"rate": numbers})
    assert checked.passed
    assert checked.accuracy[0].error is not None
    assert checked.accuracy[0].error < 0.5


@pytest.mark.parametrize(
    ("labels", "kind", "says"),
    [
        (["1", "two"] * 8, "regression", r"row 2: label 'two' is not a number"),
        (["3"] * 16, "regression", "have the number 3"),
        (["a|b"] * 15 + ["c"], "multi_label_classification", r"label\(s\) \['c'\]"),
        (["[]"] * 16, "multi_label_classification", "no row has a label"),
        (["[1"] * 16, "multi_label_classification", "row 1"),
    ],
)
def test_rows_that_do_not_fit_the_problem(model: Path, tmp_path: Path, labels: list[str], kind: Any, says: str) -> None:
    rows = Examples(make_rows(16).texts, tuple(labels))
    with pytest.raises(DataError, match=says):
        train(model, tmp_path / "out", data=rows, problem_type=kind)
    assert not (tmp_path / "out").exists()


def test_score_of_sets_and_numbers_against_hand_counts() -> None:
    sets = Problem("multi_label_classification", ("a", "b", "c"))
    logits = np.array([[1.0, -1, -1], [1, 1, -1], [-1, -1, -1]])
    found = sets.score(logits, np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    # a: 2 of 2; b: none right of one chosen and one true; c: neither, so it is left out.
    assert found == {"accuracy": pytest.approx(1 / 3), "macro_f1": pytest.approx(0.5)}
    numbers = Problem("regression", ("x",))
    found = numbers.score(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 5.0]))
    assert found["mean_error"] == pytest.approx(2 / 3)
    assert found["correlation"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 5])[0, 1])
    assert numbers.score(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]))["correlation"] == 0.0


def test_a_run_that_makes_it_worse_ends_with_1(model: Path, tmp_path: Path) -> None:
    """A base that knows the answer, trained on labels that are turned round: through the command line."""
    import shutil

    from edgepeft.cli import main

    good = train(model, tmp_path / "good", epochs=8, patience=None, data=make_rows(200))
    assert good.verdict == "better"
    assert good.gain.lower > 0
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    merged = PeftModel.from_pretrained(base, good.folder).merge_and_unload()
    merged.save_pretrained(tmp_path / "skilled")
    for file in model.iterdir():
        if not (tmp_path / "skilled" / file.name).exists():
            shutil.copy(file, tmp_path / "skilled" / file.name)
    rows, held = make_rows(120, seed=3), make_rows(80, seed=4)
    turned = Examples(rows.texts, tuple("down" if label == "up" else "up" for label in rows.labels or ()))
    files = []
    for name, examples in (("d", turned), ("v", held)):
        path = tmp_path / f"{name}.jsonl"
        pairs = zip(examples.texts, examples.labels or (), strict=True)
        path.write_text("".join(json.dumps({"text": f"{name} {text}", "label": label}) + "\n" for text, label in pairs))
        files.append(str(path))
    from click.testing import CliRunner

    call = [
        "train",
        "--model",
        str(tmp_path / "skilled"),
        "--data",
        files[0],
        "--validation",
        files[1],
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "bad"), "--learning-rate", "1e-2", "--json"])
    assert done.exit_code == 1, done.output
    assert "training made it worse than the base" in done.stderr
    assert json.loads(done.stdout)["verdict"] == "worse"
    assert json.loads((tmp_path / "bad" / ADAPTER_FILE).read_text())["metrics"]["verdict"] == "worse"


def test_a_loss_that_is_no_number_keeps_the_best_epoch(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from edgepeft.train.steps import Run

    kept, calls = Run._loss, []

    def broken(self: Run, rows: Any) -> Any:
        calls.append(1)
        loss = kept(self, rows)
        return loss * float("nan") if len(calls) == 25 else loss  # 144 rows are 9 steps: in the third epoch

    monkeypatch.setattr(Run, "_loss", broken)
    result = train(model, tmp_path / "a", epochs=8, patience=None)
    assert any(
        "became nan at step 25" in warning and "lower the learning rate" in warning for warning in result.warnings
    )
    assert result.epochs == 2
    assert result.best_epoch <= 2
    assert all(np.isfinite(value).all() for value in tensors(tmp_path / "a").values())
