"""EfficientNet-Lite0 with its ImageNet weights: LoRA at convolutions of every kind, trained on digits, swapped and compared.

The tolerance is the project's own, 1e-4 of the largest logit; labels must be equal. Images are digits of 8 x 8 points, made
larger: a task that takes seconds to learn and that the base's own head knows nothing of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import save_lora
from efficientnet import convert, register

from edgepeft import runtime
from edgepeft.demo.assets import efficientnet_lite0
from edgepeft.pipeline import export
from edgepeft.runtime import Runtime

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    # peft 0.21 and transformers 5.23, seen November 2026: the wrapped model has no property for it.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]

SIZE, DIGITS = 64, tuple("0123456789")
CONVOLUTIONS = ["_conv_stem", "_expand_conv", "_project_conv", "_conv_head"]


def images() -> tuple[np.ndarray, np.ndarray]:
    """Digits as ``[rows, 3, SIZE, SIZE]`` from -1 to 1, in an order without system, and their labels."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    small = (data.images[order] / 8.0 - 1.0).astype(np.float32)
    large = small.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)
    return np.repeat(large[:, None], 3, axis=1), data.target[order]


def train(wrapped: Any, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Three epochs, in eval mode: batch norms would else move statistics that no adapter file holds."""
    import torch

    wrapped.eval()
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    for _ in range(3):
        for start in range(0, len(labels), 32):
            logits = wrapped(pixel_values=torch.from_numpy(pixels[start : start + 32])).logits
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[start : start + 32]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder with ``model``, the adapters ``digits`` (trained) and ``dora`` (random), ``bundle``; and the worst parity."""
    import torch

    register()
    folder = tmp_path_factory.mktemp("efficientnet")
    model = convert(efficientnet_lite0() / "efficientnet-lite0-57934424.pth", folder / "model", SIZE)
    pixels, labels = images()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the head, which the checkpoint has for 1,000 other labels
        save_lora(
            folder / "digits", model, task="image-classification", num_labels=len(DIGITS), target_modules=CONVOLUTIONS,
            modules_to_save=["_fc"], r=4, lora_alpha=4, scale=0.0, record={"labels": DIGITS},
            prepare=lambda wrapped: train(wrapped, pixels[:1000], labels[:1000]),
        )  # fmt: skip
    save_lora(folder / "dora", model, task="image-classification", use_dora=True, scale=0.03, seed=2,
              target_modules=["_project_conv", "_conv_head"])  # fmt: skip
    adapters = {"digits": folder / "digits", "dora": folder / "dora"}
    done = export(model, adapters, folder / "bundle", task="image-classification")
    assert all(each.changes_output for each in done.parity)
    return folder, max(each.max_difference for each in done.parity)


@pytest.fixture(scope="module")
def opened(made: tuple[Path, float]) -> Runtime:
    return runtime.open(made[0] / "bundle", threads=1)


def test_parity_and_slots(made: tuple[Path, float], opened: Runtime) -> None:
    assert made[1] <= 1e-4
    slots = opened.manifest.slots
    # The stem, 15 blocks that expand, 16 that project, and the head.
    assert len(slots.convolutions) == 1 + 15 + 16 + 1
    assert {slot.kernel for slot in slots.convolutions} == {(3, 3), (1, 1)}
    assert {slot.parameter for slot in slots.overrides} >= {"_fc.weight", "_fc.bias"}


def test_the_trained_adapter_reads_digits_as_it_does_in_pytorch(made: tuple[Path, float], opened: Runtime) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageClassification

    pixels, labels = (each[1000:1300] for each in images())
    base = AutoModelForImageClassification.from_pretrained(
        made[0] / "model", num_labels=len(DIGITS), ignore_mismatched_sizes=True
    )
    wrapped = PeftModel.from_pretrained(base, made[0] / "digits").eval()
    with torch.no_grad():
        expected = wrapped(pixel_values=torch.from_numpy(pixels)).logits.numpy()
    plain = opened.use(None).forward({"pixel_values": pixels[:8]})["logits"]
    found = opened.use("digits").forward({"pixel_values": pixels})["logits"]
    assert opened.labels == DIGITS
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    accuracy = float((found.argmax(1) == labels).mean())
    assert accuracy > 0.7, accuracy  # a tenth by chance; that it was trained shows, how well is not the point
    opened.use("dora").forward({"pixel_values": pixels[:8]})
    assert np.array_equal(opened.use(None).forward({"pixel_values": pixels[:8]})["logits"], plain)
    assert plain.shape == (8, 1000)
