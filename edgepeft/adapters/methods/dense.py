"""Additive methods whose delta weight is known without torch but has no factors: they are found by SVD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Adapter, Array, LowRank, SiteEdit
from .lowering import Consumer
from .svd import factor, not_worth_swapping, worst


def finish_dense(
    consumer: Consumer,
    name: str,
    method: str,
    deltas: Mapping[str, Array],
    *,
    max_rank: int | None,
    mode: Literal["swap", "merge"],
) -> Adapter:
    """The adapter whose sites add ``deltas`` (``[out, in]``): as factors, or as whole weights where it is merged."""
    factors: dict[str, LowRank] = {}
    exactnesses = []
    reason = "it was read for merging"
    if mode == "swap":
        for site, delta in deltas.items():
            factors[site], exactness = factor(delta.T, max_rank=max_rank)
            exactnesses.append(exactness)
        reason = not_worth_swapping(factors)
    if reason:
        for site, delta in deltas.items():
            whole = consumer.base_weight(site) + delta
            consumer.override(f"{site}.weight", whole)
        return consumer.finish(name, method, merge_only=reason)
    consumer.sites.update({s: SiteEdit(low_rank=low_rank) for s, low_rank in factors.items() if low_rank.rank})
    return consumer.finish(name, method, exactness=worst(exactnesses))


def lower_shira(
    name: str,
    checkpoint: Checkpoint,
    weights: BaseWeights,
    *,
    max_rank: int | None = None,
    mode: Literal["swap", "merge"] = "swap",
) -> Adapter:
    """SHiRA (Bhardwaj et al. 2024, arXiv:2406.13175; ``tuners/shira/layer.py``): single entries of W are changed."""
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({"fan_in_fan_out", "init_weights", "mask_type", "r", "random_seed"})
    deltas = {}
    for site, (values, places) in consumer.matrices("shira_weight", "shira_indices").items():
        delta = np.zeros(consumer.base_weight(site).shape)
        np.add.at(delta, tuple(places.astype(np.int64)), values)
        deltas[site] = delta
    return finish_dense(consumer, name, "SHiRA", deltas, max_rank=max_rank, mode=mode)


def lower_supertuning(
    name: str,
    checkpoint: Checkpoint,
    weights: BaseWeights,
    *,
    max_rank: int | None = None,
    mode: Literal["swap", "merge"] = "swap",
) -> Adapter:
    """Super tuning (``tuners/supertuning/layer.py``): single entries of W are changed, by flat index."""
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({"init_weights", "save_precomputed_indices", "select_top", "sparsity"})
    if not checkpoint.config.get("save_precomputed_indices"):
        raise consumer.needs_peft(
            "its indices were not saved (save_precomputed_indices=false); PEFT chooses them again"
        )
    deltas = {}
    for site, (values, places) in consumer.matrices("supertuning_values", "supertuning_indices").items():
        delta = np.zeros(consumer.base_weight(site).shape)
        np.add.at(delta.reshape(-1), places.astype(np.int64), values)
        deltas[site] = delta
    return finish_dense(consumer, name, "Super tuning", deltas, max_rank=max_rank, mode=mode)


def lower_c3a(
    name: str,
    checkpoint: Checkpoint,
    weights: BaseWeights,
    *,
    max_rank: int | None = None,
    mode: Literal["swap", "merge"] = "swap",
) -> Adapter:
    """C3A (Chen et al. 2024, arXiv:2407.19342; ``tuners/c3a/utils.py``): blocks of Δ are circulant, over ``in`` features.

    ``get_circulant_fast``: ``Δ[m b : (m+1) b, n b : (n+1) b][i, j] = w[m, n, (j - i) mod b] / in``.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({"block_size", "block_size_pattern", "init_weights"})
    deltas = {}
    for site, (kernel,) in consumer.matrices("c3a_kernel", ndim=3).items():
        rows, columns, size = kernel.shape
        shift = (np.arange(size)[None, :] - np.arange(size)[:, None]) % size
        blocks = kernel[:, :, shift]  # m, n, i, j
        delta = blocks.transpose(0, 2, 1, 3).reshape(rows * size, columns * size)
        deltas[site] = delta / (columns * size)
    return finish_dense(consumer, name, "C3A", deltas, max_rank=max_rank, mode=mode)
