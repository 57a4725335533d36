"""A base whose checkpoint lacks weights: a fresh head is named and taken, anything else is an error that lists it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Models

from edgepeft.base.capture import announce_gaps
from edgepeft.base.load import load_model
from edgepeft.errors import CaptureError


def renamed(source: Path, folder: Path, rename: Callable[[str], str | None]) -> Path:
    """A copy of a base whose weights are called ``rename(name)``, without those for which that is None."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {new: tensor for name, tensor in tensors.items() if (new := rename(name)) is not None}
    assert kept.keys() != tensors.keys()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_renamed_matrix_is_refused_and_both_names_said(models: Models, tmp_path: Path) -> None:
    folder = renamed(
        models("bert"), tmp_path / "m", lambda n: n.replace("layer.1.output.dense", "layer.1.output.dance")
    )
    with pytest.raises(CaptureError) as refusal:
        load_model(folder, task="text-classification")
    said = str(refusal.value)
    assert f"{folder / 'model.safetensors'} does not hold 2 of the weights" in said
    assert "bert.encoder.layer.1.output.dense.weight" in said
    assert "bert.encoder.layer.1.output.dance.weight" in said
    assert "save_pretrained()" in said


def test_many_are_counted_not_all_listed(models: Models, tmp_path: Path) -> None:
    folder = renamed(models("bert"), tmp_path / "m", lambda n: None if ".layer.1." in n else n)
    with pytest.raises(CaptureError, match=r"does not hold 16 of the weights.*… \(16 in all\)"):
        load_model(folder, task="text-classification")


def test_half_a_head_is_a_damaged_one(models: Models, tmp_path: Path) -> None:
    folder = renamed(models("roberta"), tmp_path / "m", lambda n: None if n == "classifier.dense.weight" else n)
    with pytest.raises(CaptureError, match=r"does not hold 1 of the weights .*classifier\.dense\.weight"):
        load_model(folder, task="text-classification")


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "feature-extraction"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "deberta-v2", "electra"])
def test_fresh_heads_are_taken_and_named(architecture: str, task: str, models: Models, tmp_path: Path) -> None:
    """A masked language model's checkpoint: no classifier, no pooler, and a head that is not used."""
    loaded = load_model(models(architecture, task="fill-mask"), task=task)
    said: list[str] = []
    announce_gaps(loaded, said.append)
    assert all(name.split(".")[0] in {"bert", "classifier", "pre_classifier", "pooler"} for name in loaded.fresh)
    assert bool(loaded.fresh) == (task != "feature-extraction")
    assert [
        line for line in said if "zero until an adapter brings them" in line and "classifier" in line
    ] or not loaded.fresh
    assert [line for line in said if line.startswith(f"not used for {task}: ")]
    assert loaded.unexpected


def test_the_head_of_a_language_model_is_not_a_fresh_one(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    for tied in (True, False):
        config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied)
        LlamaForCausalLM(config).save_pretrained(tmp_path / str(tied))
    assert load_model(tmp_path / "True", task="text-generation").fresh == ()  # the embedding is its head: nothing lacks
    folder = renamed(tmp_path / "False", tmp_path / "m", lambda n: None if n == "lm_head.weight" else n)
    with pytest.raises(CaptureError, match=r"does not hold 1 of the weights .*: lm_head\.weight"):
        load_model(folder, task="text-generation")


def test_training_refuses_what_export_would(models: Models, tmp_path: Path) -> None:
    """An adapter that was trained over noise would be of no use: it is said before the first step."""
    from edgepeft.train.base import load_base

    folder = renamed(models("bert"), tmp_path / "m", lambda n: None if "layer.1.output.dense" in n else n)
    with pytest.raises(CaptureError, match=r"does not hold 2 of the weights .*layer\.1\.output\.dense"):
        load_base(folder, ["a", "b", "c"])
