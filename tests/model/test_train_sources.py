"""Training on several sources: as on one where they are drawn by size, else as a temperature says, and scored one by one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import test_train_language as language
from click.testing import CliRunner
from same_training import assert_same_curves, assert_same_weights
from test_train import make_rows, model, train  # noqa: F401 - the fixture is this module's too
from test_train_general import write
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401
from test_train_resume import Power, breaking_at

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import DataError
from edgepeft.train import ADAPTER_FILE, lm_loop, loop, resume, steps
from edgepeft.train.mixing import Mixture
from edgepeft.train.tune import tune


def parts(*counts: int) -> list[Examples]:
    """Distinct sentences in sources of these sizes."""
    rows, found = make_rows(sum(counts)), []
    for count in counts:
        start = sum(len(each) for each in found)
        found.append(rows.select(range(start, start + count)))
    return found


def test_by_size_several_sources_are_one(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """The same rows in one file and in two give the same weights; scores of the two add up to those of all."""
    mine, held = parts(120, 40), [make_rows(60, seed=5), make_rows(40, seed=6).select(range(1, 39))]
    whole = make_rows(160)
    both = Examples(tuple(t for each in held for t in each.texts), tuple(x for each in held for x in each.labels or ()))
    one = train(model, tmp_path / "one", data=whole, validation=both)
    two = train(model, tmp_path / "two", data=mine, validation=held)
    assert one.sources == ()
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    assert [(each.train_rows, each.validation_rows) for each in two.sources] == [(120, 60), (40, 38)]
    assert [each.share for each in two.sources] == pytest.approx([0.75, 0.25])
    for name in ("before", "after"):
        whole_score = getattr(two, name).accuracy
        assert sum(getattr(each, name) * each.validation_rows for each in two.sources) / 98 == pytest.approx(
            whole_score
        )
    record = json.loads((tmp_path / "two" / ADAPTER_FILE).read_text())
    assert [each["gain"]["estimate"] for each in record["sources"]] == [each.gain.estimate for each in two.sources]
    assert json.loads((tmp_path / "one" / ADAPTER_FILE).read_text())["sources"] == []


def test_a_temperature_says_how_often_each_is_drawn(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three epochs of 128 rows, 112 and 16 of two sources: at 2 their shares are 0.726 and 0.274, 93 and 35 of the draws."""
    drawn: list[Any] = []
    plain = steps.epoch_batches
    monkeypatch.setattr(steps, "epoch_batches", lambda rows, *given: drawn.append(list(rows)) or plain(rows, *given))
    found = train(
        model, tmp_path / "a", data=parts(140, 20), validation_fraction=0.2, mix_temperature=2.0, patience=None
    )
    assert [Counter(row.source for row in epoch) for epoch in drawn] == [{0: 93, 1: 35}] * 3
    assert [each.share for each in found.sources] == pytest.approx([0.7257, 0.2743], abs=1e-4)
    small = Counter(id(row) for epoch in drawn for row in epoch if row.source == 1)
    assert sorted(set(small.values())) == [6, 7]  # 105 draws of 16 rows


def test_it_goes_on_where_it_was(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    options: dict[str, Any] = {"data": parts(140, 20), "mix_temperature": 5.0, "patience": None, "dropout": 0.2}
    whole = train(model, tmp_path / "whole", **options)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "_bar", breaking_at(13))
        with pytest.raises(Power):
            train(model, tmp_path / "a", **options)
    found = train(model, tmp_path / "a", resume=True, **options)
    assert found.sources == whole.sources
    assert_same_weights(tmp_path / "whole", tmp_path / "a")
    assert_same_curves(tmp_path / "whole", tmp_path / "a")


def test_a_search_over_several_sources(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Each fold holds rows of every source and label on both sides; a head on frozen features weighs rows as they are drawn."""
    from edgepeft.train import tune_search
    from edgepeft.train.folds import make_folds

    folds: list[Any] = []
    found = None

    def noted(targets: Any, *given: Any) -> Any:
        folds.append((targets, make_folds(targets, *given)))
        return folds[-1][1]

    with pytest.MonkeyPatch.context() as looking:
        looking.setattr(tune_search, "make_folds", noted)
        looking.setattr("edgepeft.train.tune.contrast_stage", lambda *_: [])  # judged on one fold where time is short
        found = tune(model, parts(48, 16), tmp_path / "a", budget_s=1, threads=1, mix_temperature=3.0)
    ((targets, sides),) = folds
    assert all({targets[place] for place in held} == {(t, s) for t in (0, 1) for s in (0, 1)} for _, held in sides)
    assert [(each.train_rows, each.validation_rows) for each in found.adapter.sources] == [(48, 48), (16, 16)]
    assert found.adapter.sources[1].share == pytest.approx(1 / (1 + 3 ** (1 / 3)))


def test_a_fitted_head_counts_rows_as_often_as_they_are_drawn(model: Path) -> None:  # noqa: F811
    """Against scikit-learn on rows repeated as often: 40 rows of one source and 10 of another, each drawn alike, count 1 to 4."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from edgepeft.train.batches import Row
    from edgepeft.train.frozen_features import solve_head

    generator = np.random.default_rng(0)
    rows = [Row({"input_ids": [1]}, int(generator.integers(2)), int(place >= 40)) for place in range(50)]
    features = generator.standard_normal((50, 3)) + np.array([row.target for row in rows])[:, None]
    weight, bias = solve_head(features, rows, 2, 1.0, 0, temperature=1e6)
    centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    times = np.array([1 if row.source == 0 else 4 for row in rows])
    # 25 draws of each source: 0.625 of each row of the first, 2.5 of the second, so the penalty weighs 1.6 times as much.
    solver = LogisticRegression(C=0.625, max_iter=1000).fit(
        np.repeat((features - centre) / spread, times, axis=0), np.repeat([row.target for row in rows], times)
    )
    mine = features @ (weight[1] - weight[0]) + bias[1] - bias[0]
    # The solver stops at a gradient of 1e-4.
    assert mine == pytest.approx(solver.decision_function((features - centre) / spread), abs=5e-3)


def test_on_the_command_line(model: Path, tmp_path: Path) -> None:  # noqa: F811
    mine = parts(80, 40)
    a, b = write(tmp_path / "a.jsonl", mine[0]), write(tmp_path / "b.jsonl", mine[1])
    call = ["train", "--model", str(model), "--threads", "1", "--epochs", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*call, "--data", str(a), "--data", str(b), "--mix-temperature", "4"])
    assert done.exit_code in {0, 1}, done.output
    assert "Sources, each on its own validation rows" in done.stdout
    assert "54.3 %" in done.stdout  # 2^(1/4) to 1
    record = json.loads((tmp_path / "out" / ADAPTER_FILE).read_text())
    assert record["arguments"]["data"] == [str(a), str(b)]
    assert record["arguments"]["mix_temperature"] == 4
    turned = write(tmp_path / "t.jsonl", mine[1], {"up": "other"})
    for wrong, said in (
        (["--data", str(a), "--mix-temperature", "4"], "repeat --data"),
        (["--data", str(a), "--data", str(b), "--mix-temperature", "0"], "must be a finite number above 0"),
        (["--data", str(a), "--data", str(a)], "is given twice"),
        (["--data", str(a), "--data", str(turned)], "t.jsonl has 'other'"),
        (["--data", str(a), "--data", str(tmp_path / "no.jsonl")], "no.jsonl"),
    ):
        done = CliRunner().invoke(main, [*call, *wrong])
        assert done.exit_code == 2, wrong
        assert said in " ".join(done.stderr.split()), done.stderr


@pytest.fixture
def corpora(tmp_path: Path) -> list[Path]:
    rows = language.rows(60)
    return [language.write(tmp_path / "a.jsonl", rows[:48]), language.write(tmp_path / "b.jsonl", rows[48:])]


@pytest.fixture
def apart(tmp_path: Path) -> list[Path]:
    held = language.others(16, 5)
    return [language.write(tmp_path / "ha.jsonl", held[:10]), language.write(tmp_path / "hb.jsonl", held[10:])]


@pytest.mark.parametrize("packing", [False, True])
def test_by_size_several_corpora_are_one(
    language_model: Path,  # noqa: F811
    corpora: list[Path],
    apart: list[Path],
    tmp_path: Path,
    packing: bool,
) -> None:
    options: dict[str, Any] = {"packing": packing, "max_length": 64, "epochs": 1}
    whole = language.write(tmp_path / "whole.jsonl", language.rows(60))
    held = language.write(tmp_path / "held.jsonl", language.others(16, 5))
    one = language.train(language_model, whole, tmp_path / "one", validation=held, **options)
    two = language.train(language_model, corpora, tmp_path / "two", validation=apart, **options)
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    # Sums of the same numbers in another order of groups.
    assert two.after.nll == pytest.approx(one.after.nll, rel=1e-9)
    assert [(each.train_rows, each.validation_rows, each.share) for each in two.sources] == [
        (48, 10, 0.8),
        (12, 6, 0.2),
    ]
    lowest, highest = sorted(each.after for each in two.sources)
    assert lowest <= two.after.perplexity <= highest


@pytest.mark.parametrize("packing", [False, True])
def test_corpora_are_mixed_and_it_goes_on_where_it_was(
    language_model: Path,  # noqa: F811
    corpora: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packing: bool,
) -> None:
    from transformers import TrainerCallback

    drawn: list[Any] = []
    order = lm_loop.MixedOrder.__iter__
    monkeypatch.setattr(lm_loop.MixedOrder, "__iter__", lambda self: iter(drawn.append(list(order(self))) or drawn[-1]))
    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    options: dict[str, Any] = {
        "packing": packing,
        "max_length": 64,
        "epochs": 2,
        "mix_temperature": 50.0,
        "dropout": 0.2,
    }
    options |= {"batch_size": 2} if packing else {}
    whole = language.train(language_model, corpora, tmp_path / "whole", **options)
    assert len(drawn) == 2
    assert drawn[0] != drawn[1]
    assert [each.share for each in whole.sources] == pytest.approx([0.5, 0.5], abs=0.01)
    sizes = [43, 11] if not packing else None  # 54 sequences: a tenth of each is held out
    if sizes:
        for epoch in drawn:
            assert sum(place >= sizes[0] for place in epoch) == 27

    class Stop(TrainerCallback):
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def on_step_end(self, *given: Any, **more: Any) -> None:
            self.inner.on_step_end(*given, **more)

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.inner.on_save(args, state, control, **more)
            if state.global_step == 3:
                raise Power

    with monkeypatch.context() as broken:
        keeping = lm_loop.keeping
        broken.setattr(lm_loop, "keeping", lambda *given: Stop(keeping(*given)))
        with pytest.raises(Power):
            language.train(language_model, corpora, tmp_path / "a", **options)
    language.train(language_model, corpora, tmp_path / "a", resume=True, **options)
    assert_same_weights(tmp_path / "whole", tmp_path / "a")
    assert_same_curves(tmp_path / "whole", tmp_path / "a")


def test_packed_blocks_are_of_one_source() -> None:
    import numpy as np

    from edgepeft.train.encode import Tokens
    from edgepeft.train.lm_mixing import mixed_blocks

    train = [
        Tokens(np.arange(10, dtype=np.int32), np.ones(10, bool), str(place), int(place >= 15)) for place in range(20)
    ]
    blocks, mixture = mixed_blocks(train, 30, 2.0, 0)
    assert [sorted({each.source for each in block}) for block in blocks] == [[0]] * 5 + [[1]] * 2
    assert isinstance(mixture, Mixture)
    assert mixture.shares == pytest.approx(np.sqrt([5, 2]) / np.sqrt([5, 2]).sum())
    blocks, mixture = mixed_blocks(train, 30, 1.0, 0)
    assert (len(blocks), mixture) == (7, None)


def test_corpora_that_do_not_fit(language_model: Path, corpora: list[Path], tmp_path: Path) -> None:  # noqa: F811
    text = tmp_path / "novel.txt"
    text.write_text("red blue green " * 50)
    with pytest.raises(DataError, match=r"a\.jsonl holds completion rows, .*novel\.txt text rows"):
        language.train(language_model, [corpora[0], text], tmp_path / "x")
    # A prompt that one file holds out is not learnt from the other.
    again = language.write(tmp_path / "c.jsonl", [*language.rows(12), *language.others(40, 9)])
    found = language.train(language_model, [corpora[0], again], tmp_path / "y", epochs=1, validation_fraction=0.4)
    assert any("had the same text as a validation row" in warning for warning in found.warnings)
