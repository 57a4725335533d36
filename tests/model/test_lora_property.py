"""LoRA with random options: read, write, read is the identity, and swap, merge and PEFT agree."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

hypothesis = pytest.importorskip("hypothesis", reason="in the dev extra")
st = pytest.importorskip("hypothesis.strategies")

from edgepeft.adapters.files import read_adapter_onnx, write_adapter_onnx  # noqa: E402
from edgepeft.adapters.fill import fill_slots  # noqa: E402
from edgepeft.adapters.read import read_adapter  # noqa: E402
from edgepeft.base.capture import capture  # noqa: E402
from edgepeft.base.ragged import ragged_batches  # noqa: E402
from edgepeft.graph.edit_base import add_slots, merge  # noqa: E402
from edgepeft.graph.run import run_graph  # noqa: E402

#: max |logit difference| relative to the largest logit: float32 rounding in another order of adding, two layers deep.
TOLERANCE = 2e-5
SITES = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    path = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                max_position_embeddings=20, num_labels=2,
            )
        )  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path)
    return path, capture(path, task="text-classification")


@st.composite
def options(draw: Any) -> dict[str, Any]:
    """Options that PEFT accepts together."""
    sites = draw(st.lists(st.sampled_from(SITES), min_size=1, unique=True))
    dora = draw(st.booleans())
    ranks = st.integers(1, 12)
    return {
        "r": draw(ranks),
        "lora_alpha": draw(st.integers(1, 24)),
        "target_modules": sites,
        "use_rslora": draw(st.booleans()),
        "use_dora": dora,
        "lora_bias": False if dora else draw(st.booleans()),
        "bias": draw(st.sampled_from(["none", "all", "lora_only"])),
        "rank_pattern": draw(st.dictionaries(st.sampled_from(sites), ranks, max_size=2)),
        "alpha_pattern": draw(st.dictionaries(st.sampled_from(sites), st.integers(1, 9), max_size=2)),
        "modules_to_save": draw(st.sampled_from([None, ["classifier"]])),
    }


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)
@hypothesis.given(config=options(), seed=st.integers(0, 99))
def test_swap_is_merge_is_peft(
    made: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], seed: int
) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification

    folder, base = made
    out = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(
            AutoModelForSequenceClassification.from_pretrained(folder), LoraConfig(task_type="SEQ_CLS", **config)
        )
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    noise = torch.randn_like(parameter) * 0.1
                    parameter.add_(noise.abs() if "magnitude" in name else noise)
    wrapped.save_pretrained(out)
    batches = ragged_batches(
        vocab=40, pad_id=0, input_names=["input_ids", "attention_mask", "token_type_ids"], max_length=base.max_length
    )
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(folder), out).eval()
    with torch.no_grad():
        expected = [model(**{k: torch.from_numpy(v) for k, v in b.items()}).logits.numpy() for b in batches]
    scale = max(1.0, *(float(np.abs(array).max()) for array in expected))

    adapter = read_adapter(out, name="a", weights=base.weight)
    slotted = add_slots(base, [adapter])
    filled = fill_slots(adapter, slotted.table).tensors
    write_adapter_onnx(out / "a.onnx", filled, {"any": "thing"})
    again = read_adapter_onnx(out / "a.onnx").tensors
    assert again.keys() == filled.keys()
    assert all(np.array_equal(again[name], filled[name]) for name in filled)
    for result in (run_graph(slotted.graph, batches, again), run_graph(merge(base, adapter).graph, batches)):
        worst = max(float(np.abs(r["logits"] - e).max()) for r, e in zip(result, expected, strict=True))
        assert worst <= TOLERANCE * scale, config
