"""What makes training fast changes nothing that is learnt: kept activations, batches of similar length, chosen threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import make_rows, model, train  # noqa: F401 - the fixture is this module's too

from edgepeft.train import cached
from edgepeft.train.batches import Row, epoch_batches, sorted_batches
from edgepeft.train.methods import Settings
from edgepeft.train.source import load_rows
from edgepeft.train.steps import Run
from edgepeft.train.threads import ThreadChooser, fastest
from edgepeft.train.workbench import Workbench, open_workbench


def bench(folder: Path) -> Workbench:
    import torch

    rows = load_rows(make_rows(60), None, text="text", label="label", pair=None)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return open_workbench(folder, rows, None)


def run(place: Workbench, settings: Settings, steps: int, keep: bool) -> tuple[Run, list[float], Any]:
    made = Run(
        place.fresh(settings, 1),
        place.base.tokenizer,
        place.rows,
        batch_size=8,
        learning_rate=1e-2,
        total_steps=steps,
        seed=0,
        threads=1,
    )
    with made:
        if keep:
            made.keep_states()
        losses = made.advance(steps)
        return made, losses, made.evaluate(place.rows)[0]


def build(folder: Path, kind: str, tokenizer_of: Path) -> Path:
    """A classifier of three layers with random weights; decoders pad on the left."""
    import torch
    import transformers as tr

    tokenizer = tr.AutoTokenizer.from_pretrained(tokenizer_of)
    size = len(tokenizer)
    common = {
        "vocab_size": size,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 2,
    }
    narrow = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    if kind == "llama":
        tokenizer.padding_side = "left"
    configs = {
        "bert": lambda: tr.BertConfig(**common, **narrow, initializer_range=0.2),
        "roberta": lambda: tr.RobertaConfig(**{**common, "max_position_embeddings": 80}, **narrow, initializer_range=0.2),
        "distilbert": lambda: tr.DistilBertConfig(**common, dim=32, n_layers=3, n_heads=2, hidden_dim=48, initializer_range=0.2),
        "modernbert": lambda: tr.ModernBertConfig(
            **common, **narrow, local_attention=8, global_attn_every_n_layers=2, initializer_range=0.2, bos_token_id=2,
            eos_token_id=3, cls_token_id=2, sep_token_id=3,
        ),
        "llama": lambda: tr.LlamaConfig(**common, **narrow, bos_token_id=2, eos_token_id=3, initializer_range=0.2),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tr.AutoModelForSequenceClassification.from_config(configs[kind]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("bert", ("layer.2.attention.self.query", "layer.2.output.dense")),
        ("roberta", ("layer.2.attention.self.value",)),
        ("distilbert", ("layer.2.attention.q_lin",)),
        ("modernbert", ("layers.2.attn.Wqkv",)),
        ("llama", ("layers.2.self_attn.q_proj",)),
    ],
)
def test_kept_states_change_nothing(model: Path, tmp_path: Path, kind: str, targets: tuple[str, ...]) -> None:  # noqa: F811
    """Losses of 12 steps and logits after them; float32, rows padded otherwise when their states were kept: 1e-4."""
    place = bench(build(tmp_path / kind, kind, model))
    settings = Settings(targets=targets)
    kept, losses, logits = run(place, settings, 12, keep=True)
    assert kept.cached_layers == 2
    plain, expected, expected_logits = run(place, settings, 12, keep=False)
    assert plain.cached_layers == 0
    assert losses == pytest.approx(expected, abs=1e-4)
    assert np.abs(logits - expected_logits).max() < 1e-3
    assert losses[-1] != losses[0]


def test_nothing_is_kept_where_something_below_is_trained_or_random(model: Path) -> None:  # noqa: F811
    import torch

    place = bench(model)
    made = Run(
        place.fresh(Settings(targets=("layer.1.attention.self.query",)), 1),
        place.base.tokenizer,
        place.rows,
        batch_size=8,
        learning_rate=1e-2,
        total_steps=4,
        seed=0,
        threads=1,
    )
    made.keep_states()
    assert made.cached_layers == 1
    network: Any = made.model
    embeddings = network.get_base_model().bert.embeddings
    embeddings.LayerNorm.weight.requires_grad_(True)
    made.keep_states()
    assert made.cached_layers == 0
    assert all(row.hidden is None for row in place.rows)
    embeddings.LayerNorm.weight.requires_grad_(False)
    embeddings.dropout = torch.nn.Dropout(0.1)
    made.keep_states()
    assert made.cached_layers == 0
    embeddings.dropout = torch.nn.Dropout(0.0)
    made.keep_states()
    assert made.cached_layers == 1


def test_states_that_do_not_fit_are_not_kept(model: Path, monkeypatch: Any) -> None:  # noqa: F811
    monkeypatch.setattr(cached, "_MOST_BYTES", 2000)
    made, losses, _ = run(bench(model), Settings(targets=("layer.1.attention.self.query",)), 3, keep=True)
    assert made.cached_layers == 0
    assert all(row.hidden is None for row in made.rows)
    assert len(losses) == 3


def test_a_network_that_would_answer_otherwise_is_computed_whole(model: Path, monkeypatch: Any) -> None:  # noqa: F811
    """States of the wrong layer would be believed silently: the first rows are compared."""
    monkeypatch.setattr(cached.ActivationCache, "_padded", lambda self, rows, mask: _ones(rows, mask))
    made, _, logits = run(bench(model), Settings(targets=("layer.1.attention.self.query",)), 3, keep=True)
    assert made.cached_layers == 0
    monkeypatch.undo()
    expected = run(bench(model), Settings(targets=("layer.1.attention.self.query",)), 3, keep=False)[2]
    assert np.abs(logits - expected).max() < 1e-6


def _ones(rows: Any, mask: Any) -> Any:
    import torch

    return torch.ones((*mask.shape, rows[0].hidden.shape[-1]), device=mask.device)


def test_batches_hold_every_row_once_and_like_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 203)
    rows = [Row({"input_ids": [1] * int(length)}, 0) for length in lengths]
    batches = epoch_batches(rows, 8, np.random.default_rng(1))
    assert [len(batch) for batch in batches] == [8] * 25 + [3]
    assert {id(row) for batch in batches for row in batch} == {id(row) for row in rows}
    assert len(batches[0][0]) == max(map(len, batches[0])) == max(len(row) for batch in batches[:-1] for row in batch)
    padded = sum(len(batch) * max(map(len, batch)) for batch in batches)
    assert padded < 1.1 * lengths.sum()  # at random it is 1.7 times
    again = epoch_batches(rows, 8, np.random.default_rng(1))
    assert [[id(row) for row in batch] for batch in again] == [[id(row) for row in batch] for batch in batches]
    assert epoch_batches(rows, 8, np.random.default_rng(2)) != batches
    places = [place for part, _ in sorted_batches(rows, 16) for place in part]
    assert sorted(places) == list(range(203))


def test_threads_are_those_that_turn_out_fastest(monkeypatch: Any) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    chooser = ThreadChooser(cores=2)
    assert chooser.candidates == (1, 2)
    seconds = {1: 0.144, 2: 0.415}  # of two cores that others use too
    taken = []
    for step in range(70):
        if step == 60:
            seconds = {1: 0.144, 2: 0.09}  # they are left alone again
        threads = chooser.next()
        taken.append(threads)
        chooser.took(threads, seconds[threads])
    assert taken[:6] == [1, 2, 1, 2, 1, 2]
    assert set(taken[6:60]) == {1}
    assert taken[66:] == [2] * 4
    assert fastest({1: 1.0, 2: 0.95, 4: 0.5}) == 4
    assert fastest({1: 1.0, 2: 0.95}) == 1  # not worth a second core
    assert ThreadChooser(fixed=3).next() == 3
    assert ThreadChooser(cores=6).candidates == (1, 2, 4, 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert ThreadChooser(cores=8).candidates == (1,)


def test_layers_below_the_lowest_trained_one_are_reported(model: Path, tmp_path: Path) -> None:  # noqa: F811
    result = train(model, tmp_path / "a", epochs=2, target_modules=["layer.1.attention.self.query"])
    assert (result.cached_layers, result.threads) == (1, 1)
    assert train(model, tmp_path / "b", epochs=1).cached_layers == 0
