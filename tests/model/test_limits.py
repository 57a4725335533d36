"""The longest input: found by content, and run in PyTorch and in the graph at exactly that length."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZES, randomize, save_tokenizer

from edgepeft import pipeline, runtime
from edgepeft.base.limits import longest, positions
from edgepeft.base.load import load_model
from edgepeft.base.samples import input_shapes

#: Model types: what their config takes beyond the sizes, and how many of their 40 positions texts can use (``None``: any).
MODELS: dict[str, tuple[dict[str, Any], int | None]] = {
    "Bert": ({}, 40),
    "Electra": ({"embedding_size": 16}, 40),
    "DistilBert": ({}, 40),
    "Albert": ({"embedding_size": 16}, 40),
    "Roberta": ({}, 38),
    "XLMRoberta": ({}, 38),
    "XLMRobertaXL": ({}, 38),
    "Data2VecText": ({}, 38),
    "RobertaPreLayerNorm": ({}, 38),
    "Xmod": ({"languages": ["en_XX"], "default_language": "en_XX"}, 38),
    "Camembert": ({}, 38),
    "MPNet": ({}, 38),
    "Esm": ({"position_embedding_type": "absolute", "mask_token_id": 3}, 38),
    "IBert": ({}, 38),
    "Luke": ({"entity_vocab_size": 10, "entity_emb_size": 32}, 38),
    "DebertaV2": ({"position_biased_input": False, "relative_attention": True, "pos_att_type": ["p2c"]}, None),
    "RoFormer": ({"embedding_size": 32}, 40),
}


def _model(name: str) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(vocab_size=60, pad_token_id=1, **{**SIZES, **MODELS[name][0]})
    return getattr(transformers, f"{name}Model")(config).eval()


def _runs(model: Any, tokens: int) -> bool:
    import torch

    ids = torch.full((1, tokens), 7)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_as_many_tokens_as_the_model_runs(name: str) -> None:
    model, limit = _model(name), MODELS[name][1]
    found = positions(model, input_shapes(model), generates=False)
    assert found == (limit or 40)  # without a table it is what the config states
    assert _runs(model, found)
    assert _runs(model, found + 1) is (limit is None)


@pytest.mark.parametrize("name", ["XLMRobertaXL", "Data2VecText", "RobertaPreLayerNorm", "Xmod"])
def test_the_graph_runs_at_its_stated_length(name: str, tmp_path: Path) -> None:
    """These failed in a Gather: their limits came from a list of model types that they were not on."""
    model = _model(name)
    randomize(model, 2)
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "good"], max_length=512)
    bundle = pipeline.export(tmp_path / "model", {}, tmp_path / "bundle", slots="all-linear").bundles[0]
    assert bundle.manifest.max_length == 38
    with runtime.open(bundle.path, threads=1) as opened:
        inputs = opened.encode("good " * 60)
        assert inputs["input_ids"].shape == (1, 38)
        assert opened.truncated(["good " * 60, "good " * 36, "good " * 37]) == [0, 2]
        found = opened.forward(inputs)["last_hidden_state"]
        import torch

        with torch.no_grad():
            expected = model(**{key: torch.from_numpy(array) for key, array in inputs.items()}).last_hidden_state
        # float32 on both sides, sums of a few dozen numbers of the order of 1
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_tokenizer_and_sentence_transformers_have_a_say() -> None:
    config = {"tokenizer_config.json": b'{"model_max_length": 512}'}
    huge = {"tokenizer_config.json": b'{"model_max_length": 1000000000000000019884624838656}'}
    assert longest(40, config, None) == 40
    assert longest(1024, config, None) == 512
    assert longest(None, config, None) == 512  # relative positions have no limit of their own
    assert longest(None, huge, None) is None
    assert longest(514, huge, None) == 514
    assert longest(512, config, 256) == 256
    assert longest(2048, config, 1024) == 1024  # the library takes max_seq_length in place of the tokenizer's
    assert longest(512, config, 1024) == 512


def test_what_cannot_be_run_on_tokens_alone_falls_back_to_its_config() -> None:
    model = _model("Bert")
    shapes = dict(input_shapes(model))
    model.forward = None
    assert positions(model, shapes, generates=False) == 40


def test_a_folder_states_its_positions(tmp_path: Path) -> None:
    model = _model("Roberta")
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "good"], max_length=20)
    loaded = load_model(tmp_path)
    assert (loaded.max_length, loaded.positions) == (20, 38)
    assert dataclasses.is_dataclass(loaded)
