"""Quality numbers of ``validate`` over tiny models of every task, against PyTorch where it computes the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from click.testing import CliRunner
from conftest import Models, save_lora

from edgepeft import runtime
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import DataError, InputError
from edgepeft.metrics import Measured
from edgepeft.pipeline import export, quantize, validate
from edgepeft.runtime import View
from edgepeft.validate import LanguageRows, Validation, read_language_rows
from edgepeft.validate import accuracy as accuracy_room
from edgepeft.validate.likelihood import row_tokens

TEXTS = [
    "the film was very good",
    "a book is not fine",
    "awful plot .",
    "the end was great",
    "poor , bad film",
    "a fine end",
]


def metric(result: Validation, name: str, variant: str = "fp32", adapter: str | None = None) -> Measured:
    (found,) = [
        each
        for each in result.metrics
        if (each.metric.name, each.scored.variant) == (name, variant) and adapter in (None, each.scored.adapter)
    ]
    return found


def test_a_classifier_has_its_metrics_in_every_report(own_bundle: Path, tmp_path: Path) -> None:
    quantize(own_bundle, "int8")
    model = runtime.open(own_bundle)
    answers = [found.label for found in model.adapter("head").predict(TEXTS * 5)]
    labels = [*answers[:-3], *("abcde"["abcde".index(label) - 1] for label in answers[-3:])]  # three rows are wrong
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in zip(TEXTS * 5, labels, strict=True)))
    done = CliRunner().invoke(
        main, ["validate", str(own_bundle), "--data", f"head={rows}", "--no-reference", "--adapter", "head", "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    found = {(row["variant"], row["metric"]): row for row in report["data"]["metrics"]}
    assert {name for variant, name in found if variant == "fp32"} == {"accuracy", "macro_f1", "mcc", "ece"}
    accuracy = found["fp32", "accuracy"]
    assert (accuracy["value"], accuracy["method"], accuracy["rows"]) == (0.9, "Wilson", 30)
    assert accuracy["lower"] < 0.9 < accuracy["upper"]
    assert {row["metric"] for row in report["data"]["comparisons"]} == {"accuracy", "macro_f1", "mcc", "ece"}
    assert all(row["p_holm"] >= row["p_value"] for row in report["data"]["comparisons"])
    titles = [table["title"] for table in report["tables"]]
    assert {"Quality with 95% intervals", "Variants compared on the same rows"} <= set(titles)
    assert "Quality with 95% intervals" in (own_bundle / "report" / "validate.md").read_text()
    few = CliRunner().invoke(
        main, ["validate", str(own_bundle), "--data", f"head={rows}", "--no-reference", "--limit", "7", "--json"]
    )
    assert json.loads(few.stdout)["data"]["metrics"][0]["rows"] == 7


def test_labels_and_names_are_looked_at_before_a_model_is_loaded(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "open", lambda *arguments, **options: pytest.fail("a model was loaded"))
    wrong = Examples(("a film", "a book"), ("a", "z"), source="rows.csv", lines=(2, 3))
    with pytest.raises(DataError, match=r"rows.csv, line 3: label 'z' is not one of the adapter's: a, b, c, d, e"):
        validate(own_bundle, data={"head": wrong}, reference=False)
    with pytest.raises(InputError, match="data was given for 'head', which is not among the adapters chosen: plain"):
        validate(own_bundle, data={"head": wrong}, only=["plain"], reference=False)
    with pytest.raises(InputError, match="has no adapter 'nope'"):
        validate(own_bundle, only=["nope"], reference=False)
    with pytest.raises(InputError, match="is for text-classification, which these rows are not for"):
        validate(own_bundle, data={"head": LanguageRows((), "texts.jsonl")}, reference=False)


def test_one_adapter_alone(own_bundle: Path, checkpoints: dict[str, Path], models: Models) -> None:
    given = {name: checkpoints[name] for name in ("plain", "dora")}
    result = validate(own_bundle, adapters=given, only=["plain"], base=str(models("bert")))
    assert [each.adapter for each in result.parity] == ["plain"]
    assert result.unchecked == ()


def test_tags_of_words(models: Models, tmp_path: Path) -> None:
    base = models("bert", "token-classification", labels=5)
    names = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    source = save_lora(
        tmp_path / "tags", base, task="token-classification", task_type="TOKEN_CLS", num_labels=5,
        record={"labels": names}, modules_to_save=["classifier"],
    )  # fmt: skip
    (bundle,) = export(base, {"tags": source}, tmp_path / "b", task="token-classification").bundles
    texts = ["the unfilmable plot", "a good , very good end", "zz the"]
    found = runtime.open(bundle.path).adapter("tags").run(texts)
    expected = []
    for text, row in zip(texts, found, strict=True):
        tokens = [t for t in row["tokens"] if t["token"] not in {"[CLS]", "[SEP]"}]
        # The first token of each word: WordPiece marks those that go on with ##, or gives one [UNK] a word.
        first = [t["label"] for t in tokens if not t["token"].startswith("##")]
        assert len(first) == len(text.split())
        expected.append(first)
    right = Examples(tuple(texts), tuple(json.dumps(tags) for tags in expected), source="tags.jsonl")
    result = validate(bundle, data={"tags": right}, reference=False)
    assert metric(result, "tag_accuracy").value == 1.0
    entities = metric(result, "entity_f1").value
    assert entities == 1.0 or math.isnan(entities)
    wrong = Examples(right.texts, ("O O O", "O O O O O O", "O"), source="tags.jsonl", lines=(1, 2, 3))
    with pytest.raises(DataError, match=r"tags\.jsonl, line 3: 1 tags for 2 words"):
        validate(bundle, data={"tags": wrong}, reference=False)


def test_embeddings_of_pairs(models: Models, tmp_path: Path) -> None:
    base = models("bert", "feature-extraction")
    source = save_lora(tmp_path / "near", base, task="feature-extraction", task_type="FEATURE_EXTRACTION")
    (bundle,) = export(base, {"near": source}, tmp_path / "b", task="feature-extraction").bundles
    model = runtime.open(bundle.path).adapter("near")
    pairs = [(TEXTS[0], text) for text in TEXTS[1:]]
    one, other = (model.embed([pair[side] for pair in pairs], normalize=True) for side in (0, 1))
    cosines = (one * other).sum(axis=1)
    data = Examples(
        tuple(p[0] for p in pairs), tuple(str(rank) for rank in np.argsort(np.argsort(cosines))),
        tuple(p[1] for p in pairs), source="pairs.csv",
    )  # fmt: skip
    result = validate(bundle, data={"near": data}, reference=False)
    assert metric(result, "spearman").value == pytest.approx(1.0)
    assert metric(result, "ndcg").value == pytest.approx(1.0)
    assert metric(result, "map").value == pytest.approx(1.0)
    with pytest.raises(InputError, match="name the column of the second text with --pair"):
        validate(bundle, data={"near": Examples(data.texts, data.labels, source="p.csv")}, reference=False)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("causal-quality"))


def test_a_language_model_has_pytorchs_perplexity(causal: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = tmp_path / "rows.jsonl"
    long = " ".join(["the film was very good and naïve"] * 30)  # beyond the context: several pieces
    rows.write_text(
        json.dumps({"text": "the end of the book was not"})
        + "\n"
        + json.dumps({"text": long})
        + "\n"
        + json.dumps({"prompt": "the film was", "completion": "good and the end"})
        + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the book"}]})
        + "\n"
    )
    given = read_language_rows(rows)
    name = runtime.open(causal).adapters[0]
    result = validate(causal, data={name: given}, reference=False)
    view = runtime.open(causal).adapter(name)
    folder = causal.parent
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), folder / name).eval()
    room = view.generator.prompts.room(0)
    assert room is not None
    losses, tokens = 0.0, 0
    for row in given.rows:
        ids, start = row_tokens(view, row)
        for begin in range(0, len(ids) - 1, room - 1):
            piece, first = ids[begin : begin + room], max(1, start - begin)
            with torch.no_grad():
                logits = model(torch.tensor([piece])).logits[0, :-1].double().log_softmax(-1)
            wanted = torch.tensor(piece[1:])
            losses -= float(logits.gather(1, wanted[:, None])[first - 1 :].sum())
            tokens += len(piece) - first
    # fp32 sums of hundreds of tokens: 1e-5 relative is beyond their rounding.
    assert metric(result, "perplexity").value == pytest.approx(math.exp(losses / tokens), rel=1e-5)
    assert len(metric(result, "exact_match").scored) == 2, "rows with a prompt are generated for"
    assert 0 <= metric(result, "chrf").value <= 1


def test_only_the_answer_is_judged(causal: Path) -> None:
    view = runtime.open(causal).base
    row = LanguageRows(read_rows_of([{"prompt": "hi", "completion": "the end"}])).rows[0]
    ids, start = row_tokens(view, row)
    text = view.generator.tokens.decode(ids[start:])
    assert text.strip() == "the end"
    assert ids[-1] in view.end_tokens, "the answer's end is judged too"


def read_rows_of(rows: list[dict[str, str]]):  # type: ignore[no-untyped-def]
    from edgepeft.validate.language_rows import LanguageRow

    return tuple(LanguageRow(row["prompt"], row["completion"], "row") for row in rows)


def test_a_coarser_variant_diverges_from_fp32(causal: Path, tmp_path: Path) -> None:
    import shutil

    bundle = Path(shutil.copytree(causal, tmp_path / "b"))
    quantize(bundle, "int8")
    name = runtime.open(bundle).adapters[0]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    result = validate(bundle, data={name: read_language_rows(rows)}, reference=False)
    kl, agreement = metric(result, "kl", "int8"), metric(result, "top_token", "int8")
    assert 0 < kl.value < 1
    assert 0 < kl.interval.lower <= kl.value <= kl.interval.upper
    assert 0.3 < agreement.value <= 1
    assert {c.metric for c in result.comparisons} == {"perplexity"}, "a divergence from fp32 has no pair"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "ends with the assistant's answer"),
        ({"prompt": "hi"}, "nothing to judge a language model on"),
        ({"text": " "}, "'text' must be a text"),
        ({"prompt": "hi", "completion": 3}, "'completion' must be a text"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(row: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"line 2: .*{said}"):
        read_language_rows(path)


def test_a_validation_that_is_broken_off_says_so_and_is_gone_on_with(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(own_bundle, "int8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text, "label": "a"}) + "\n" for text in TEXTS * 10))
    arguments = ["validate", str(own_bundle), "--data", f"head={rows}", "--no-reference", "--report", str(tmp_path)]
    whole = CliRunner().invoke(main, arguments)
    before = json.loads((tmp_path / "validate.json").read_text())
    assert whole.exit_code == 0, whole.output
    monkeypatch.setattr("edgepeft.validate.chunks.CHUNK", 16)
    run = accuracy_room._logits
    asked: list[str] = []

    def stops(view: View, *arguments: Any) -> Any:
        if len(asked) == 6:
            raise KeyboardInterrupt
        asked.append(view.variant)
        return run(view, *arguments)

    monkeypatch.setattr(accuracy_room, "_logits", stops)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 130
    assert "head, fp32: 48 of 60 rows" in done.output
    assert "marked as partial" in done.output
    partial = json.loads((tmp_path / "validate.json").read_text())
    assert (partial["verdict"], partial["data"]["partial"]) == ("inconclusive", "interrupted")
    assert {row["variant"] for row in partial["data"]["metrics"]} == {"fp32"}
    asked.clear()
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "going on after the answers of a run that was broken off" in done.output
    assert asked == ["int8", "int8"], "four chunks of fp32 and two of int8 were answered before"
    after = json.loads((tmp_path / "validate.json").read_text())
    for key in ("verdict", "gates", "data"):
        assert after[key] == before[key]
    assert not (tmp_path / "validate.answers.db").exists()
