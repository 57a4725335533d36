"""The last layer attending evenly: what the token that a classifier reads then holds, and that it ships and is trained from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import make_rows, model  # noqa: F401 - the fixture is this module's too

from edgepeft.data import Examples
from edgepeft.errors import InputError
from edgepeft.train.even_attention import attend_evenly, key_site
from edgepeft.train.folds import make_folds
from edgepeft.train.methods import Settings
from edgepeft.train.source import load_rows
from edgepeft.train.steps import Run
from edgepeft.train.trials import Candidate, run_trial, trained
from edgepeft.train.workbench import Workbench, open_workbench


def bench(folder: Path, rows: Examples, held: Examples | None = None) -> Workbench:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(3)
        return open_workbench(folder, load_rows(rows, held, text="text", label="label", pair=None), None)


def test_the_last_layer_reads_the_mean_of_what_enters_it(model: Path) -> None:  # noqa: F811
    """Against that layer by hand: the first token gets the projected mean over the row's own tokens, padding left out."""
    import torch

    place = bench(model, make_rows(20))
    site = key_site(place)
    assert site == "bert.encoder.layer.1.attention.self.key"
    net: Any = place.fresh(Settings("dora", rank=1, ranks=((site, 1),)), 0).eval()
    attend_evenly(net, site)
    layer = net.get_base_model().bert.encoder.layer[1]
    seen: list[Any] = []
    layer.attention.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    inputs = place.base.tokenizer(
        ["the film was good", "a very bad book was the film"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = net(**inputs, output_hidden_states=True).hidden_states[1]
        mask = inputs["attention_mask"][..., None].float()
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
        wanted = layer.attention.self.value(mean)
    assert seen[0][:, 0].numpy() == pytest.approx(wanted.numpy(), abs=1e-5)


@pytest.mark.parametrize("kind", ["DistilBert", "Roberta"])
def test_other_architectures_name_their_keys(model: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(tmp_path)
    own = (
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        if kind == "DistilBert"
        else {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "pad_token_id": 0,
        }
    )
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), max_position_embeddings=70, **own)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    site = key_site(bench(tmp_path, make_rows(20)))
    assert site is not None
    assert site.endswith(("1.attention.k_lin", "1.attention.self.key"))


def test_without_a_gain_there_is_nothing_to_set(model: Path) -> None:  # noqa: F811
    place = bench(model, make_rows(20))
    site = key_site(place)
    assert site is not None
    with pytest.raises(InputError, match="has no magnitude that is trained"):
        attend_evenly(place.fresh(Settings("lora", targets="all-linear"), 0), site)


def test_a_head_under_it_is_judged_as_if_trained_fold_by_fold(model: Path) -> None:  # noqa: F811
    """Features are run once for all folds; the answers are those of a network that was fitted on each fold's rows."""
    place = bench(model, make_rows(40))
    site = key_site(place)
    assert site is not None
    candidate = Candidate(Settings("dora", rank=1, ranks=((site, 1),)), "features", 0.1, site)
    folds = make_folds([row.target for row in place.rows], 0)
    quick = run_trial(place, candidate, folds, stage="x", steps=1, batch_size=8, seed=0, threads=1)
    right: dict[int, list[float]] = {}
    for train, held in folds:
        run = trained(place, candidate, [place.rows[i] for i in train], 1, 8, 0, 1)
        with run:
            logits, _ = run.evaluate([place.rows[i] for i in held])
        for i, mine in zip(held, logits, strict=True):
            right.setdefault(i, []).append(float(mine.argmax() == place.rows[i].target))
    assert quick.right == pytest.approx([np.mean(right[i]) for i in sorted(right)])


def test_training_goes_on_from_the_solved_head_and_moves_the_gain(model: Path) -> None:  # noqa: F811
    place = bench(model, make_rows(40))
    site = key_site(place)
    assert site is not None
    settings = Settings("dora", rank=2, targets="all-linear", learning_rate=1e-3)
    start = trained(place, Candidate(settings, "fine-tune", 0.1, site), place.rows, 0, 8, 0, 1)
    head = trained(
        place, Candidate(Settings("dora", rank=1, ranks=((site, 1),)), "features", 0.1, site), place.rows, 1, 8, 0, 1
    )
    with start, head:
        assert start.evaluate(place.rows)[0] == pytest.approx(head.evaluate(place.rows)[0], abs=1e-4)
    moved = trained(place, Candidate(settings, "fine-tune", 0.1, site), place.rows, 5, 8, 0, 1)
    gain = next(p for n, p in moved.model.named_parameters() if f"{site}.lora_magnitude_vector" in n)
    assert 0 < float(gain.detach().abs().max()) < 0.1


def test_it_ships(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Exported, the answers are those of PyTorch, in fp32 and on int8 nearly so."""
    from edgepeft import runtime
    from edgepeft.pipeline import export, quantize
    from edgepeft.train.adapter import finish
    from edgepeft.train.loop import Course, Scores

    held = make_rows(40, seed=5)
    place = bench(model, make_rows(40), held)
    site = key_site(place)
    assert site is not None
    candidate = Candidate(Settings("dora", rank=1, ranks=((site, 1),)), "features", 0.1, site)
    run: Run = trained(place, candidate, place.rows, 1, 8, 0, 1)
    with run:
        logits, _ = run.evaluate(place.held)
    right = (logits.argmax(axis=1) == [row.target for row in place.held]).astype(float)
    scores = Scores(float(right.mean()), None, 1.0)
    finish(place, run.model, Course(scores, scores, (1.0,), 1, right, right), tmp_path / "a", {}, 1.0)
    export(model, {"mine": tmp_path / "a"}, tmp_path / "b")
    quantize(tmp_path / "b", "int8")
    for variant, tolerance in (("fp32", 1e-4), ("int8", 0.2)):
        with runtime.open(tmp_path / "b", variant=variant) as opened:
            view = opened.adapter("mine")
            found = view.forward(view.encode(list(held.texts)))["logits"]
        # int8 rounds activations to 127 steps a token; the head's weights are some units large here.
        assert np.abs(found - logits).max() <= tolerance * max(1.0, float(np.abs(logits).max()))
