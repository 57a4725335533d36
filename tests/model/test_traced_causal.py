"""Causal LMs that mobius does not build correctly: traced with a cache, announced, and refused where that fails too."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from causal import ADAPTERS, make_causal_bundle
from causal_models import TRACED, build_causal, unchanged
from conftest import save_lora

from edgepeft import runtime as runtimes
from edgepeft.base.capture import capture
from edgepeft.base.parity import TOLERANCE
from edgepeft.errors import CaptureError
from edgepeft.pipeline import export

#: Gemma 3 with a layer of each kind.
FEWER: dict[str, dict[str, Any]] = {
    "gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name != "falcon" else ()) for name in TRACED]
)
def test_what_mobius_cannot_build_is_traced(name: str, tmp_path: Path) -> None:
    """Base and a LoRA whose numbers are all random, against PyTorch and PEFT through the cache; then the base again."""
    model = build_causal(tmp_path / "model", name)
    fused = {"falcon": ["query_key_value", "dense"]}
    lora = save_lora(
        tmp_path / "lora",
        model,
        task="text-generation",
        task_type="CAUSAL_LM",
        target_modules=fused.get(name, ["q_proj", "v_proj", "down_proj"]),
    )
    told: list[str] = []
    result = export(model, {"a": lora}, tmp_path / "bundle", task="text-generation", announce=told.append)
    assert any(message.startswith("capture route mobius dropped: ") for message in told)
    assert any("(traced)" in message for message in told)
    manifest = result.bundles[0].manifest
    assert manifest.base.captured_by == "traced"
    assert result.capture_parity <= TOLERANCE
    assert result.parity[0].changes_output
    assert result.parity[0].max_difference <= TOLERANCE
    shapes = {value.name: value.shape for value in manifest.inputs}
    heads, size = (1, 16) if name == "falcon" else (2, 16)
    assert shapes["input_ids"] == shapes["position_ids"] == ("batch_size", "sequence_length")
    assert shapes["attention_mask"] == ("batch_size", "total_sequence_length")
    assert shapes["past_key_values.0.key"] == ("batch_size", heads, "past_sequence_length", size)
    assert shapes["logits_from"] == (1,)
    assert {value.name: value.shape for value in manifest.outputs}["present.2.value"] == (
        "batch_size",
        heads,
        "total_sequence_length",
        size,
    )


@pytest.mark.parametrize(
    ("name", "fix"),
    [pytest.param("opt", "RestoreEpsilon", marks=pytest.mark.slow), ("gemma3", "RestoreLayerAttention")],
)
def test_a_wrong_mobius_graph_is_traced_instead(
    name: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"edgepeft.base.routes.mobius_fixes.{fix}.call", unchanged)
    told: list[str] = []
    base = capture(
        build_causal(tmp_path / name, name, **FEWER.get(name, {})), task="text-generation", announce=told.append
    )
    assert base.captured_by == "traced"
    assert base.parity <= TOLERANCE
    (message,) = told
    assert message.startswith("capture route mobius dropped: logits differ from PyTorch by ")


def test_an_architecture_that_neither_route_gets_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both measured differences are named, and the architecture.

    mobius' graph loses Gemma 3's windows where it is not mended, and a traced one counts padding in the window.
    """
    monkeypatch.setattr("edgepeft.base.routes.mobius_fixes.RestoreLayerAttention.call", unchanged)
    monkeypatch.setattr(
        "edgepeft.base.routes.traced_causal._windows_by_position", lambda model: contextlib.nullcontext()
    )
    with pytest.raises(CaptureError, match="Gemma3ForCausalLM") as caught:
        capture(build_causal(tmp_path / "gemma3", "gemma3", **FEWER["gemma3"]), task="text-generation")
    assert "mobius: logits differ from PyTorch by " in str(caught.value)
    assert "traced: logits differ from PyTorch by " in str(caught.value)


def test_a_model_without_a_cache_of_keys_and_values_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, state_size=4, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(CaptureError, match="traced: MambaForCausalLM keeps another state between tokens"):
        capture(tmp_path / "mamba", task="text-generation")


def test_generation_from_a_traced_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy tokens of a ragged batch, each row with its own adapter, are PEFT's; the graph takes ``position_ids``."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def refuse(loaded: object) -> None:
        raise CaptureError("not here")

    monkeypatch.setattr("edgepeft.base.routes.mobius.build", refuse)
    folder = make_causal_bundle(tmp_path).parent
    runtime = runtimes.open(folder / "bundle", threads=1)
    assert runtime.manifest.base.captured_by == "traced"
    assert "position_ids" in {value.name for value in runtime.manifest.inputs}
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompts, names = ["the film was", "a", "the end of the book was not very good"], [None, *ADAPTERS][:3]
    expected = []
    for prompt, name in zip(prompts, names, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        model = (model if name is None else PeftModel.from_pretrained(model, folder / name)).eval()
        ids = torch.tensor([tokenizer(prompt).input_ids])
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        expected.append([int(token) for token in out[0, ids.shape[1] :]])
    found = runtime.generate(prompts, adapters=names, chat=False, max_new_tokens=20)
    assert [list(each.tokens) for each in found] == expected
