"""Features taught by contrast, for few labels: texts of one label alike, those of different labels at right angles.

This is the loss of SetFit (Tunstall et al. 2022, arXiv 2209.11055), but over all pairs of a batch. It is taken at two places: at
the mean of the last states, which sentence encoders were made for and which therefore learns from few texts, and at what the
classifier reads, which follows and ships. The head is solved for afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .batches import Row
from .cached import blocks_of
from .frozen_features import entering

if TYPE_CHECKING:
    import torch

    from .steps import Run


#: Texts of a step at least: each is compared with all others.
CONTRAST_BATCH = 32
#: The network runs over so many texts of a step at a time, those of like length: a random batch of 32 sentences is half padding.
_PIECE = 8


def pair_loss(states: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """The squared distance of cosines from 1 for pairs of one label and from 0 for others; both kinds weigh alike.

    Args:
        states: Features ``[rows, hidden]``.
        targets: Label ids ``[rows]``; at least one pair is needed.

    Returns:
        The loss, a scalar; 0 where all texts of a label point one way and labels are at right angles.

    Example:
        >>> float(pair_loss(torch.eye(2), [0, 1]))
        0.0
    """
    import torch

    unit = torch.nn.functional.normalize(states.float(), dim=-1)
    labels = torch.as_tensor(targets, device=states.device)
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=states.device)
    same = labels[first] == labels[second]
    squares = ((unit @ unit.T)[first, second] - same.float()).square()
    kinds = [squares[kind] for kind in (same, ~same) if kind.any()]
    return torch.stack([kind.mean() for kind in kinds]).mean()


def contrast(run: Run, rows: Sequence[Row], head: Any) -> torch.Tensor:
    """:func:`pair_loss` of one batch, at the mean of the last states and at what enters ``head``, each half.

    Raises:
        InputError: The head is computed at every token (decoders that classify).
    """
    import torch

    ordered = sorted(rows, key=len)
    pieces = [ordered[start : start + _PIECE] for start in range(0, len(ordered), _PIECE)]
    means, read = map(torch.cat, zip(*(_states(run, piece, head) for piece in pieces), strict=True))
    targets = [row.target for row in ordered]
    return (pair_loss(means, targets) + pair_loss(read, targets)) / 2


def _states(run: Run, rows: Sequence[Row], head: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of the last states ``[rows, hidden]``, and what enters ``head`` ``[rows, features]``."""
    last: list[Any] = []
    masks: list[Any] = []
    handles = [
        blocks_of(run.model)[1][-1].register_forward_hook(lambda *given: last.append(given[-1])),
        run.model.register_forward_pre_hook(lambda *given: masks.append(given[-1]["attention_mask"]), with_kwargs=True),
    ]
    try:
        read = entering(run, rows, head)
    finally:
        for handle in handles:
            handle.remove()
    states = last[-1][0] if isinstance(last[-1], tuple) else last[-1]
    mask = masks[-1][..., None].to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1), read


def shuffled_batches(rows: Sequence[Row], batch_size: int, generator: np.random.Generator) -> list[list[Row]]:
    """All rows once in an order that ``generator`` draws, long ones beside short ones; a rest of one row joins the batch before.

    Sorted by length, few rows would fall into the same batches in every epoch, and texts of different ones never be compared.
    """
    order = generator.permutation(len(rows))
    starts = [start for start in range(0, len(order), batch_size) if len(order) - start > 1]
    return [
        [rows[place] for place in order[start:end]]
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True)
    ]
