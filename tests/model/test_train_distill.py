"""``--distill``: an adapter learns on rounded weights what it says on the base's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train_language as language
from test_train import model  # noqa: F401 - the fixture is this module's too
from test_train_deployed import assert_same, bundles  # noqa: F401
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401

from edgepeft.errors import InputError
from edgepeft.train import ADAPTER_FILE, distill
from edgepeft.train.encode import Tokens


def sequences(count: int) -> list[Tokens]:
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        ids = generator.integers(3, 200, size=int(generator.integers(4, 12))).astype(np.int32)
        found.append(Tokens(ids, np.arange(len(ids)) >= 2, str(number)))
    return found


def test_the_divergence_is_that_of_all_odds_but_for_the_rest(language_model: Path) -> None:  # noqa: F811
    """Against torch's own over the whole vocabulary, where all but one token are kept; a few tokens kept give a lower bound."""
    import torch

    from edgepeft.train.base import load_language_base
    from edgepeft.train.encode import collate

    base = load_language_base(language_model)
    rows = sequences(3)
    logits = torch.randn(3, max(len(row.ids) for row in rows), base.model.config.vocab_size)
    expected = 0.0
    base.model.eval()
    with torch.no_grad():
        for place, row in enumerate(rows):
            theirs = torch.log_softmax(
                base.model(input_ids=torch.from_numpy(row.ids[None].astype(np.int64))).logits[0], -1
            )
            mine = torch.log_softmax(logits[place, : len(row.ids)], -1)
            expected += float((theirs.exp() * (theirs - mine)).sum(-1)[:-1].sum())
    found = []
    for kept in (base.model.config.vocab_size, 8):
        distill_kept, distill._KEPT = distill._KEPT, kept
        try:
            teacher = distill.Teacher(base.model, rows, 0)
        finally:
            distill._KEPT = distill_kept
        target = teacher.of([[row] for row in rows], logits.shape[1])
        assert len(target["places"]) == sum(len(row.ids) - 1 for row in rows)
        found.append(float(distill.divergence(logits, target)))
        # Packed into one row they are the same places, one after the other.
        packed = teacher.of([rows], sum(len(row.ids) for row in rows))
        joined = torch.cat([logits[place, : len(row.ids)] for place, row in enumerate(rows)])[None]
        assert float(distill.divergence(joined, packed)) == pytest.approx(found[-1], rel=1e-5)
    # float32 sums over some hundred tokens.
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert 0 < found[1] < expected
    assert collate([rows], 0)["input_ids"].shape[1] == sum(len(row.ids) for row in rows)


def test_its_own_odds_are_no_distance(language_model: Path) -> None:  # noqa: F811
    import torch

    from edgepeft.train.base import load_language_base
    from edgepeft.train.encode import collate

    base = load_language_base(language_model)
    rows = sequences(4)
    teacher = distill.Teacher(base.model, rows, 0)
    batch = collate([[row] for row in rows], 0)
    with torch.no_grad():
        logits = base.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    # Padded and alone, float32.
    assert float(distill.divergence(logits, teacher.of([[row] for row in rows], logits.shape[1]))) < 1e-3


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 64, "gradient_accumulation": 2}])
def test_rounded_weights_learn_to_say_what_the_adapter_says(
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    bundles: dict[str, Path],  # noqa: F811
    options: dict[str, Any],
) -> None:
    """The steps' loss is the divergence from what the adapter says in fp32, on rows that it is trained on: it falls."""
    data = language.write(tmp_path / "d.jsonl", language.rows(60))
    held = language.write(tmp_path / "h.jsonl", language.others(20, 5))
    common: dict[str, Any] = {"validation": held, "patience": None, **options}
    plain = language.train(language_model, data, tmp_path / "plain", epochs=4, **common)
    found = language.train(
        language_model,
        data,
        tmp_path / "a",
        start=tmp_path / "plain",
        deploy_variant="q4",
        bundle=bundles["language"],
        distill=True,
        **{**common, "epochs": 6, "learning_rate": 3e-3},
    )
    assert found.deployed is not None
    assert_same(found.deployed.fp32_before, plain.after)
    losses = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())["metrics"]["train_loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_what_it_needs(language_model: Path, tmp_path: Path, bundles: dict[str, Path], monkeypatch: Any) -> None:  # noqa: F811
    data = language.write(tmp_path / "d.jsonl", language.rows(30))
    for more in ({}, {"deploy_variant": "q4", "bundle": bundles["language"]}):
        with pytest.raises(InputError, match="--distill needs --from"):
            language.train(language_model, data, tmp_path / "a", distill=True, **more)
    language.train(language_model, data, tmp_path / "plain", epochs=1)
    monkeypatch.setattr(distill, "_MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"training tokens, more than .* GiB; give fewer rows"):
        language.train(
            language_model,
            data,
            tmp_path / "a",
            start=tmp_path / "plain",
            distill=True,
            deploy_variant="q4",
            bundle=bundles["language"],
        )
