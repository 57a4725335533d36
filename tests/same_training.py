"""Two trainings that should be one: to the last bit on a processor, but for rounding on a GPU.

A GPU adds up gradients in an order of its own in each run (attention's backward pass, tables of embeddings), so the same steps end
at weights that are not quite the same: AdamW divides by the root of squared gradients, so where these are near 0 a rounding
becomes a part of a step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.train import ADAPTER_FILE
from edgepeft.train.device import training_device

#: Of a GPU, after some dozen steps at a rate of 1e-2: a fifth of one step of one weight.
WEIGHTS = 2e-3
#: Of a GPU: losses in nats, means over rows.
LOSSES = 1e-3


def exact() -> bool:
    """Whether the same steps give the same bits here."""
    return training_device().type == "cpu"


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def assert_same_weights(one: Path, other: Path, tolerance: float | None = None) -> None:
    """``tolerance`` is for the largest difference of a weight; by default 0 on a processor."""
    allowed = tolerance if tolerance is not None else 0.0 if exact() else WEIGHTS
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    apart = {name: float(np.abs(a[name] - b[name]).max()) for name in a}
    assert max(apart.values()) <= allowed, max(apart.items(), key=lambda item: item[1])


def assert_same_curves(one: Path, other: Path) -> None:
    """Losses of steps and epochs; on a processor the scores of epochs and the best of them too, which a rounding may turn."""
    a, b = (json.loads((folder / ADAPTER_FILE).read_text())["metrics"] for folder in (one, other))
    if exact():
        for name in ("step_loss", "epoch_scores", "train_loss", "best_epoch"):
            assert a[name] == b[name], name
        return
    for name in ("step_loss", "train_loss"):
        assert a[name] == pytest.approx(b[name], abs=LOSSES), name
