"""How near a classifier's network is to rows before any training: how well its features tell their labels apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .batches import Collator, Row, sorted_batches
from .device import training_device
from .tokenizer import HubTokenizer

if TYPE_CHECKING:
    from torch import nn

#: Rows that are looked at: enough to tell adapters apart, in some seconds.
MOST_ROWS = 400
_BATCH = 32
#: Ridge penalties, as shares of the features' mean variance; the best is taken, for each network alike.
_PENALTIES = (0.01, 0.1, 1.0, 10.0)
MEASURE = "squared error of left-out rows, by ridge regression on features"


def left_out_error(features: npt.NDArray[np.floating], targets: npt.NDArray[np.floating]) -> float:
    """The squared error of each row left out, by ridge regression on the others, over that of their mean.

    In closed form (Allen's PRESS): a row's residual over one minus its leverage.

    Args:
        features: ``[rows, hidden]``.
        targets: ``[rows, outputs]``.

    Returns:
        1 where features tell nothing, 0 where they tell all; of several penalties the best.
    """
    rows = len(features)
    centred = np.asarray(features, np.float64) - np.mean(features, axis=0, dtype=np.float64)
    wanted = np.asarray(targets, np.float64) - np.mean(targets, axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    power = values**2
    scale = float(power.sum()) / max(1, min(centred.shape))
    apart = rows / (rows - 1)  # the mean without a row is that of the others
    least = float((wanted * apart).__pow__(2).sum()) or 1.0
    errors = []
    for penalty in _PENALTIES:
        shrunk = power / (power + penalty * scale) if scale else np.zeros_like(power)
        leverage = (left**2 * shrunk).sum(axis=1) + 1.0 / rows
        residual = wanted - left @ (shrunk[:, None] * (left.T @ wanted))
        errors.append(float(((residual / np.maximum(1e-9, 1.0 - leverage)[:, None]) ** 2).sum()) / least)
    return min(errors)


def targets_of(rows: Sequence[Row], labels: int) -> npt.NDArray[np.float64]:
    """What rows are to give, as numbers ``[rows, outputs]``: a 1 for each label that holds, or the number."""
    first = rows[0].target
    if isinstance(first, int | np.integer):
        return np.eye(labels)[[row.target for row in rows]]
    return np.array([np.atleast_1d(row.target) for row in rows], dtype=np.float64)


def nearness(model: nn.Module, tokenizer: HubTokenizer, rows: Sequence[Row], labels: int) -> float:
    """:func:`left_out_error` of what enters the head of ``model``: of the pooled text, or of its last token.

    At most :data:`MOST_ROWS` rows are taken, spread evenly.
    """
    taken = [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(int))]
    return left_out_error(_features(model, tokenizer, taken, labels), targets_of(taken, labels))


def _features(model: Any, tokenizer: HubTokenizer, rows: Sequence[Row], labels: int) -> npt.NDArray[np.float64]:
    import torch
    from torch import nn

    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == labels]
    device = training_device()
    model.to(device)
    collate = Collator(tokenizer, device)
    found: list[Any] = [None] * len(rows)
    entered: list[Any] = []
    handle = heads[-1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for places, part in sorted_batches(rows, _BATCH):
                batch = collate(part)
                model(**{name: value for name, value in batch.items() if name != "labels"})
                states = entered.pop()
                if states.dim() == 3:  # a head at every token: the text's last one counts
                    places_of = torch.arange(states.shape[1], device=states.device) * batch["attention_mask"]
                    states = states[torch.arange(len(part), device=states.device), places_of.argmax(dim=1)]
                for place, state in zip(places, states.cpu().double().numpy(), strict=True):
                    found[place] = state
    finally:
        handle.remove()
        model.train(training)
    return np.stack(found)
