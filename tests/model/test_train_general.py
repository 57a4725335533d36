"""``--general``: rows of other domains are measured too, and have a say in which epoch is kept; and whether confidence holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_train_language as language
from click.testing import CliRunner
from same_training import assert_same_weights
from test_train import make_rows, model, train  # noqa: F401 - the fixture is this module's too
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401
from test_train_resume import Power, breaking_at

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import DataError
from edgepeft.train import ADAPTER_FILE, loop, resume


def write(path: Path, rows: Examples, labels: dict[str, str] | None = None) -> Path:
    lines = [
        {"text": text, "label": (labels or {}).get(label, label)}
        for text, label in zip(rows.texts, rows.labels or (), strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_another_domain_in_which_it_gets_worse(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """The same texts with each label turned round: what is won on one side is lost on the other, row by row."""
    held = make_rows(80, seed=5)
    turned = write(tmp_path / "turned.jsonl", held, {"up": "down", "down": "up"})
    plain = train(model, tmp_path / "plain", validation=held, epochs=6, patience=None)
    found = train(model, tmp_path / "a", validation=held, epochs=6, patience=None, general=turned)
    assert plain.general is None
    assert found.general is not None
    assert found.general.rows == 80
    for mine, theirs in ((found.before, found.general.before), (found.after, found.general.after)):
        assert mine.accuracy is not None
        assert theirs.accuracy == pytest.approx(1 - mine.accuracy)
    assert found.general.gain.estimate == pytest.approx(-found.gain.estimate)
    # Each epoch's mean over both is that of labels at random; the best for the validation rows alone has no merit here.
    assert (found.after.macro_f1 or 0) + (found.general.after.macro_f1 or 0) <= 1.0 + 1e-9
    assert json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())["general"]["rows"] == 80


def test_the_same_rows_twice_choose_as_once(model: Path, tmp_path: Path) -> None:  # noqa: F811
    held = make_rows(80, seed=5)
    options: dict[str, Any] = {"validation": held, "epochs": 4, "patience": None}
    plain = train(model, tmp_path / "plain", **options)
    found = train(model, tmp_path / "a", **options, general=write(tmp_path / "g.jsonl", held))
    assert (found.best_epoch, found.after) == (plain.best_epoch, plain.after)
    assert found.general.after == found.after
    assert_same_weights(tmp_path / "plain", tmp_path / "a")


def test_it_goes_on_where_it_was(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    options: dict[str, Any] = {"general": write(tmp_path / "g.jsonl", make_rows(40, seed=7)), "patience": None}
    whole = train(model, tmp_path / "whole", **options)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "_bar", breaking_at(13))
        with pytest.raises(Power):
            train(model, tmp_path / "a", **options)
    found = train(model, tmp_path / "a", resume=True, **options)
    assert found.general == whole.general
    assert_same_weights(tmp_path / "whole", tmp_path / "a")


def test_what_is_said_and_refused(model: Path, tmp_path: Path) -> None:  # noqa: F811
    data, held = write(tmp_path / "d.jsonl", make_rows(160)), make_rows(80, seed=5)
    validation = write(tmp_path / "h.jsonl", held)
    turned = write(tmp_path / "turned.jsonl", held, {"up": "down", "down": "up"})
    call = ["train", "--model", str(model), "--data", str(data), "--validation", str(validation), "--threads", "1"]
    call += ["--out", str(tmp_path / "a"), "--epochs", "8", "--learning-rate", "0.01", "--patience", "9"]
    done = CliRunner().invoke(main, [*call, "--general", str(turned)])
    assert done.exit_code in {0, 1}, done.output
    assert f"on 80 rows of {turned}: accuracy " in done.stdout
    with pytest.raises(DataError, match=r"label\(s\) \['left'\] are not among the training labels \['down', 'up'\]"):
        train(model, tmp_path / "b", general=write(tmp_path / "g.jsonl", held, {"up": "left"}))
    done = CliRunner().invoke(main, [*call, "--compare", "lora,ia3", "--general", str(turned)])
    assert done.exit_code == 2
    assert "--general is for the training of one adapter" in done.stderr


def test_confidence_is_told_before_and_after(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Against scikit-learn, on the logits that PEFT gives with the written adapter."""
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from sklearn.metrics import brier_score_loss
    from transformers import AutoTokenizer

    held = make_rows(80, seed=5)
    found = train(model, tmp_path / "a", validation=held, epochs=4)
    assert found.calibration is not None
    written = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "a", num_labels=2).eval()
    with torch.no_grad():
        inputs = AutoTokenizer.from_pretrained(model)(list(held.texts), padding=True, return_tensors="pt")
        up = written(**inputs).logits.double().softmax(dim=1)[:, found.labels.index("up")].tolist()
    right = [(chance > 0.5) == (label == "up") for chance, label in zip(up, held.labels or (), strict=True)]
    # Of two labels scikit-learn counts one of the two equal squares. float32 of another order.
    expected = 2 * brier_score_loss([label == "up" for label in held.labels or ()], up)
    assert found.calibration.brier_after == pytest.approx(expected, abs=1e-4)
    assert sum(each.rows for each in found.calibration.bins) == 80
    assert sum(each.rows * each.right for each in found.calibration.bins) == pytest.approx(sum(right))
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())["calibration"]
    assert record["temperature"] == found.calibration.temperature > 0
    numbers = Examples(held.texts, tuple(str(len(text)) for text in held.texts))
    assert train(model, tmp_path / "n", data=numbers, problem_type="regression", epochs=1).calibration is None


def test_it_is_printed_and_drawn(model: Path, tmp_path: Path) -> None:  # noqa: F811
    from edgepeft.html_report import write_html_report

    data, held = write(tmp_path / "d.jsonl", make_rows(80)), make_rows(40, seed=5)
    beyond = write(tmp_path / "g.jsonl", held, {"up": "down", "down": "up"})
    call = [
        "train",
        "--model",
        str(model),
        "--data",
        str(data),
        "--threads",
        "1",
        "--epochs",
        "1",
        "--general",
        str(beyond),
    ]
    done = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "a")])
    assert done.exit_code in {0, 1}, done.output
    for said in ("calibration error", "Brier score", f"accuracy on {beyond}", "temperature scaling"):
        assert said in done.stdout
    page = write_html_report([tmp_path / "a"]).path.read_text()
    for said in (
        "a: can its confidence be believed?",
        "a: confidence, and other domains",
        "Brier score",
        "logits over",
    ):
        assert said in page
    assert "a: sources" not in page


def corpus_with_another_domain(tmp_path: Path) -> tuple[Path, Path]:
    """Training rows, and conversations in which the answers are others."""
    turned = [{**row, "completion": "I do not know."} for row in language.others(12, 9)]
    return language.write(tmp_path / "d.jsonl", language.rows(48)), language.write(tmp_path / "g.jsonl", turned)


def test_what_a_language_model_forgets(language_model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Answers of another kind get less likely the longer it learns; with them the epoch is chosen by the mean of both losses."""
    data, beyond = corpus_with_another_domain(tmp_path)
    options: dict[str, Any] = {"epochs": 4, "patience": None}
    found = language.train(language_model, data, tmp_path / "a", general=beyond, **options)
    alone = language.train(
        language_model,
        language.write(tmp_path / "e.jsonl", language.rows(8)),
        tmp_path / "other",
        validation=beyond,
        epochs=1,
    )
    assert found.general is not None
    assert found.general.rows == 12
    # The same twelve rows, measured on the same base.
    assert found.general.before.nll == pytest.approx(alone.before.nll, rel=1e-6)
    assert found.general.gain.estimate == pytest.approx(found.general.after.nll - found.general.before.nll)
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())
    assert record["general"]["gain"]["estimate"] == found.general.gain.estimate
    plain = language.train(language_model, data, tmp_path / "plain", **options)
    assert plain.general is None
    assert plain.after.nll <= found.after.nll
    # A row of the other domain is not learnt.
    both = language.write(tmp_path / "both.jsonl", [*language.rows(48), *language.others(12, 9)])
    warned = language.train(language_model, both, tmp_path / "b", general=beyond, epochs=1)
    assert any("12 training rows had the same text" in warning for warning in warned.warnings)


def test_forgetting_goes_on_where_it_was(
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgepeft.train import lm_loop

    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    data, beyond = corpus_with_another_domain(tmp_path)
    options: dict[str, Any] = {"general": beyond, "epochs": 2}
    whole = language.train(language_model, data, tmp_path / "whole", **options)
    measured = lm_loop.measure
    calls: list[int] = []

    def broken_measure(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # other domains, after the second epoch
            raise Power
        return measured(*given, **more)

    with monkeypatch.context() as broken:
        broken.setattr(lm_loop, "measure", broken_measure)
        with pytest.raises(Power):
            language.train(language_model, data, tmp_path / "a", **options)
    found = language.train(language_model, data, tmp_path / "a", resume=True, **options)
    assert found.general == whole.general
    assert_same_weights(tmp_path / "whole", tmp_path / "a")


def test_forgetting_on_the_command_line(language_model: Path, tmp_path: Path) -> None:  # noqa: F811
    data, beyond = corpus_with_another_domain(tmp_path)
    call = ["train", "--model", str(language_model), "--data", str(data), "--threads", "1", "--epochs", "1"]
    done = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "a"), "--general", str(beyond)])
    assert done.exit_code in {0, 1}, done.output
    assert f"perplexity on {beyond} (change in nats a token)" in done.stdout
    assert f"tokens of {beyond}: nats a token" in done.stdout
    missing = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "b"), "--general", str(tmp_path / "no.jsonl")])
    assert missing.exit_code == 2
