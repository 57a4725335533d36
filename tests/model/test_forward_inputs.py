"""Inputs of ``forward`` beside tokens: boxes of words are served, what is not is refused by name.

References are PEFT's outputs on boxes of words that differ by token; the tolerance is parity's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import randomize, save_lora

from edgepeft import runtime
from edgepeft.base.forward_inputs import check_inputs
from edgepeft.base.samples import input_shapes, random_batches
from edgepeft.errors import CaptureError, InputError
from edgepeft.pipeline import export

SIZES = {
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 60,
}
#: Architecture → what its config needs beside, and how many numbers a box has.
BOXES: dict[str, tuple[dict[str, Any], int]] = {
    "LayoutLM": ({"max_2d_position_embeddings": 1024}, 4),
    "Lilt": ({"max_2d_position_embeddings": 1024, "channel_shrink_ratio": 4}, 4),
    "Bros": ({}, 8),
}


def build(folder: Path, architecture: str, **options: Any) -> Path:
    import torch
    import transformers

    config = getattr(transformers, f"{architecture}Config")(
        **SIZES, num_labels=3, max_position_embeddings=40, **options
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{architecture}ForTokenClassification")(config)
    randomize(model, 0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["LayoutLM", pytest.param("Lilt", marks=pytest.mark.slow), "Bros"])
def test_boxes_of_words(architecture: str, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForTokenClassification

    options, numbers = BOXES[architecture]
    folder = build(tmp_path / "model", architecture, **options)
    source = save_lora(
        tmp_path / "fields", folder, task="token-classification", task_type="TOKEN_CLS", r=3, seed=1,
        target_modules=["query", "value"],
    )  # fmt: skip
    bundle = export(
        folder, {"fields": source}, tmp_path / "bundle", task="token-classification", max_length=36
    ).bundles[0]
    shapes = {value.name: value.shape for value in bundle.manifest.inputs}
    assert shapes["bbox"][-1] == numbers
    (inputs,) = random_batches(shapes, vocab=60, pad_id=0, shapes=((3, 11),), seed=5)
    assert len({tuple(box) for box in inputs["bbox"][0].tolist()}) > 5
    view = runtime.open(bundle.path).adapter("fields")
    mine = view.forward(inputs)["logits"]
    peft = PeftModel.from_pretrained(
        AutoModelForTokenClassification.from_pretrained(folder, num_labels=3), source
    ).eval()
    with torch.no_grad():
        theirs = peft(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        nowhere = peft(**{**given, "bbox": torch.zeros_like(given["bbox"])}).logits.numpy()
    real = inputs["attention_mask"][..., None]
    scale = max(1.0, float(np.abs(theirs).max()))
    assert np.abs((mine - theirs) * real).max() / scale <= 1e-4
    assert np.abs((mine - nowhere) * real).max() / scale > 1e-2, "the boxes count"
    with pytest.raises(InputError, match="bbox"):
        view.forward({name: array for name, array in inputs.items() if name != "bbox"})


@pytest.mark.parametrize(
    ("architecture", "options", "says"),
    [
        ("LayoutLMv3", {"coordinate_size": 8, "shape_size": 8}, r"bbox \(boxes of words\), pixel_values \(an image\) beside"),
        ("RoCBert", {"pronunciation_vocab_size": 9, "shape_vocab_size": 9}, "input_pronunciation_ids"),
        ("MarkupLM", {}, r"xpath_tags_seq \(places in a web page\)"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(
    architecture: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    from edgepeft.pipeline import capture

    folder = build(tmp_path, architecture, **options)
    with pytest.raises(CaptureError, match=f"{says}.*not exported"):
        capture(folder, task="token-classification")


def test_of_a_models_own() -> None:
    """An input that nobody knows is taken for one that counts; one that training alone gives is not."""

    class Config:
        type_vocab_size = 1

    class Model:
        config = Config()

        def forward(
            self, input_ids: Any, attention_mask: Any = None, labels: Any = None, temperature_map: Any = None
        ) -> None:
            raise NotImplementedError

    served = input_shapes(Model())
    with pytest.raises(CaptureError, match="Model takes temperature_map beside input_ids, attention_mask"):
        check_inputs(Model(), served, "text-classification")
    check_inputs(Model(), {**served, "temperature_map": ()}, "text-classification")
    check_inputs(Model(), served, "text-generation")
