"""Parity sees what only long texts show: windows, switches and the end of the context, whole and behind a cache.

Each fault is planted into the reference (another window, other rotary factors, another table), which differs from the graph from
there on and nowhere else: the comparison on short texts of before does not see it.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from causal import CONTEXT, build_causal, build_other
from conftest import randomize

from edgepeft.base import lengths, parity_positions
from edgepeft.base import parity as parity_module
from edgepeft.base.base import Base
from edgepeft.base.capture import capture
from edgepeft.base.load import Loaded, load_model
from edgepeft.base.parity import graph_causal_parity, parity
from edgepeft.base.ragged import SHAPES
from edgepeft.base.routes.traced import trace
from edgepeft.base.routes.traced_causal import trace_causal
from edgepeft.errors import ParityError
from edgepeft.runtime.sessions import open_session


def other_window(model: Any) -> None:
    """Attention is cut one token later."""
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        if getattr(config, "sliding_window", None):
            config.sliding_window += 1
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window += 1


def other_end(model: Any) -> None:
    """The last row of the table of positions is another."""
    import torch

    table = next(m for n, m in model.named_modules() if n.endswith("wpe") and isinstance(m, torch.nn.Embedding))
    with torch.no_grad():
        table.weight[-1] = -table.weight[-1]  # a constant would be lost in the norm behind it


#: Architecture and fault.
FAULTS: dict[str, tuple[str, Callable[[Any], None]]] = {"window": ("mistral", other_window), "end": ("gpt2", other_end)}


@pytest.fixture(scope="module", params=FAULTS)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Loaded, Any]:
    architecture, _ = FAULTS[request.param]
    folder = build_other(tmp_path_factory.mktemp("lengths") / architecture, architecture)
    loaded = load_model(folder, task="text-generation")
    if architecture == "mistral":  # of 6 tokens otherwise: shorter than every prompt
        loaded.model.config.sliding_window = 40
        for module in loaded.model.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 40
    return request.param, loaded, trace_causal(loaded).graph


def without_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt that outgrows a small window, which every model can afford, is left out."""
    batches = parity_module.causal_batches
    monkeypatch.setattr(parity_module, "causal_batches", lambda **options: batches(**{**options, "window": None}))


def faulty(name: str, loaded: Loaded) -> Loaded:
    model = copy.deepcopy(loaded.model)
    FAULTS[name][1](model)
    return replace(loaded, model=model)


@pytest.mark.parametrize("how", ["whole", "behind a cache"])
def test_a_fault_that_only_long_texts_show(
    how: str, traced: tuple[str, Loaded, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, loaded, graph = traced
    if how == "behind a cache":  # as of a model of billions, which cannot afford a long prompt
        for module in (lengths, parity_positions):
            monkeypatch.setattr(module, "affordable", lambda *_: False)
        monkeypatch.setattr("edgepeft.base.parity_causal.affordable", lambda *_: False)
        without_window(monkeypatch)
    assert graph_causal_parity(graph, loaded) < 1e-4
    with pytest.raises(ParityError, match="differ from PyTorch by"):
        graph_causal_parity(graph, faulty(name, loaded))
    # What was compared before does not see it.
    monkeypatch.setattr("edgepeft.base.parity_causal.boundaries", lambda *_: ())
    monkeypatch.setattr("edgepeft.base.parity_causal.affordable", lambda *_: False)
    monkeypatch.setattr(parity_positions, "lengths_that_matter", lambda *_: ())
    without_window(monkeypatch)
    assert graph_causal_parity(graph, faulty(name, loaded)) < 1e-4


def test_places_far_away_are_those_that_are_not_read_whole() -> None:
    inputs = {f"past_key_values.0.{side}": ("batch", 2, "past", 4) for side in ("key", "value")}
    config = {"sliding_window": 64, "vocab_size": 99}
    assert parity_positions.places(config, 1024, 1000, inputs) == []
    far = parity_positions.places(config, 1024, 10**10, inputs)
    assert [place.position for place in far] == [63, 64, 1023]
    huge = dict.fromkeys(inputs, ("batch", 2**20, "past", 4))
    assert parity_positions.places(config, 1024, 10**10, huge) == []
    cache = far[0].cache(inputs)
    assert {array.shape for array in cache.values()} == {(1, 2, 63, 4)}
    assert all(np.array_equal(array, far[0].cache(inputs)[name]) for name, array in cache.items())
    assert len({id(array) for array in cache.values()}) == 2, "keys are not values"


def test_layers_share_the_states_before_a_place() -> None:
    """Memory does not grow with the layers, but for those of another shape."""
    inputs = {
        f"past_key_values.{layer}.{side}": ("batch", 4 if layer == 2 else 2, "past", 8)
        for layer in range(4)
        for side in ("key", "value")
    }
    cache = parity_positions.Place(20, 7).cache(inputs, room=1)
    assert {id(cache[f"past_key_values.{layer}.key"]) for layer in (0, 1, 3)} == {id(cache["past_key_values.0.key"])}
    assert len({id(array) for array in cache.values()}) == 4
    assert cache["past_key_values.2.value"].shape == (1, 4, 21, 8)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_a_place_computed_otherwise_is_the_same_number(architecture: str, tmp_path: Path) -> None:
    """States in the opposite order, and a cache that is written into: fp32 through two layers, 1e-4 of logits of some 10.

    Where a window cuts the states off, their order counts, and stays.
    """
    folder = build_causal(tmp_path / "m") if architecture == "llama" else build_other(tmp_path / "m", architecture)
    base = capture(folder, task="text-generation")
    session = open_session_of(base, tmp_path)
    model = load_model(folder, task="text-generation").model
    shapes = {value.name: value.shape for value in session.get_inputs()}
    place = parity_positions.Place(100, 7)
    logits = parity_positions.reference_place(model, shapes, place)
    again = parity_positions.reference_place(model, shapes, place, backwards=True)
    assert logits is not None
    assert again is not None
    assert parity_positions.place_difference(again, logits) < 1e-4
    written = parity_positions.run_place(parity_positions.in_place(session), shapes, place, 1)
    assert parity_positions.place_difference(written, logits) < 1e-4
    names = [value.name for value in session.get_outputs()]
    apart = parity_positions.run_place(
        lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True)), shapes, place
    )
    assert parity_positions.place_difference(written, apart) < 1e-5, "a cache for each layer: the same sums"
    noise = parity_positions.place_noise({place: logits}, {place: again}, "otherwise")
    assert noise.size == parity_positions.place_difference(again, logits)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text"])
def test_pytorch_holds_the_states_once(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: PyTorch's cache left alone, each layer with a copy of its own; the same sums give the same bits."""
    folder = build_causal(tmp_path / "m") if architecture == "llama" else build_other(tmp_path / "m", architecture)
    model = load_model(folder, task="text-generation").model
    transformers = importlib.import_module("transformers")  # which puts another module in its place as it is loaded
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    shapes = {
        f"past_key_values.{layer}.{side}": ("batch", heads, "past", width)
        for layer in range(model.config.num_hidden_layers)
        for side in ("key", "value")
    }
    made: list[Any] = []
    own = transformers.DynamicCache
    monkeypatch.setattr(transformers, "DynamicCache", lambda **options: made.append(own(**options)) or made[-1])
    place = parity_positions.Place(100, 7)
    logits = parity_positions.reference_place(model, shapes, place)
    (cache,) = made
    assert len(cache.layers) == model.config.num_hidden_layers > 1
    for side in ("keys", "values"):
        assert len({getattr(layer, side).untyped_storage().data_ptr() for layer in cache.layers}) == 1
    monkeypatch.setattr(parity_positions, "_hold_in_common", lambda *_: None)
    apart = parity_positions.reference_place(model, shapes, place)
    assert len({layer.keys.untyped_storage().data_ptr() for layer in made[1].layers}) == len(cache.layers)
    assert logits is not None
    assert np.array_equal(logits, apart)


def open_session_of(base: Base, folder: Path) -> Any:
    ir.save(base.graph, folder / "model.onnx")
    return open_session(folder / "model.onnx", threads=1)


def test_a_context_that_the_model_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens are said to fit than the table of positions has rows."""
    loaded = load_model(build_other(tmp_path / "gpt2", "gpt2"), task="text-generation")
    inputs = {f"past_key_values.{i}.{side}": ("batch", 4, "past", 8) for i in range(2) for side in ("key", "value")}
    monkeypatch.setattr(parity_positions, "affordable", lambda *_: False)
    assert len(parity_positions.reference_places(loaded, inputs, 10**9)) == 1
    with pytest.raises(ParityError, match=rf"PyTorch has no position {CONTEXT}"):
        parity_positions.reference_places(replace(loaded, max_length=CONTEXT + 1), inputs, 10**9)


def test_the_last_position_of_an_encoder(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50,
                   max_position_embeddings=48)
    )  # fmt: skip
    randomize(model, 0)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, task="text-classification")
    captured = trace(loaded, fusions=True)
    other = copy.deepcopy(loaded.model)
    with torch.no_grad():
        other.bert.embeddings.position_embeddings.weight[-1] *= -1
    wrong = replace(loaded, model=other)
    with pytest.raises(ParityError, match="outputs differ from PyTorch"):
        parity(captured.graph, wrong)
    from edgepeft.base.load import sample_batches

    short = sample_batches(loaded, shapes=SHAPES)
    assert max(batch["input_ids"].shape[1] for batch in sample_batches(loaded)) == 48
    assert max(batch["input_ids"].shape[1] for batch in short) == 17
