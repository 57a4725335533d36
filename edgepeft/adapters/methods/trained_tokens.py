"""Rows of an embedding that were trained: a change of few rows has a low rank, so it ships as factors and not as a table.

``W[rows] = values`` is ``W + E D``: ``E [vocabulary, k]`` has a one in each trained row, ``D [k, width]`` holds what changes.
Exact up to one rounding. PEFT's wrapper (``utils/other.py``, ``TrainableTokensWrapper``) also changes a head that is tied to
the embedding; its logits change by ``x D^T E^T``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import AdapterMismatchError, UnsupportedAdapterError
from ..edits import LowRank, Override, SiteEdit
from .lowering import Consumer


def take_rows(consumer: Consumer, site: str, rows: Sequence[int], values: np.ndarray) -> None:
    """Lower the trained rows of the embedding at ``site``, in the head that is tied to it as well.

    Args:
        consumer: Takes the edits.
        site: The embedding's module path.
        rows: The trained rows, one for each of ``values``.
        values: What stands in them, ``[rows, width]``.

    Raises:
        AdapterMismatchError: The rows do not fit the base's embedding.
        UnsupportedAdapterError: A row is named twice.
    """
    source = consumer.checkpoint.source
    table = consumer.base_weight(site)
    if (
        values.shape != (len(rows), table.shape[1])
        or max(rows, default=0) >= table.shape[0]
        or min(rows, default=0) < 0
    ):
        raise AdapterMismatchError(
            f"{source}, site {site}: {len(rows)} token indices up to {max(rows, default=0)} and rows {values.shape} "
            f"do not fit the base's embedding {table.shape}"
        )
    if len(set(rows)) != len(rows):
        raise UnsupportedAdapterError(f"{source}: token_indices names a token twice; which row holds is unclear")
    index = list(rows)
    change = (np.asarray(values, np.float64) - table[index]).astype(np.float32)
    head = consumer.weights.tied_head(f"{site}.weight")
    if head is None and 2 * len(rows) > table.shape[1]:
        # The factors would be larger than the table.
        whole = np.array(table)
        whole[index] = values
        consumer.overrides[f"{site}.weight"] = Override(whole)
        consumer.notes.append(
            f"{len(rows)} trained tokens are shipped with the whole embedding ({table.shape[0]} rows)"
        )
        return
    chosen = np.zeros((table.shape[0], len(rows)), np.float32)
    chosen[index, np.arange(len(rows))] = 1
    _add(consumer, site, LowRank(a=chosen, b=change))
    also = ""
    if head is not None:
        _add(consumer, head.removesuffix(".weight"), LowRank(a=change.T, b=chosen.T))
        also = " and of the head tied to it"
    consumer.notes.append(f"{len(rows)} trained tokens are shipped as a change of rank {len(rows)} of {site}{also}")


def _add(consumer: Consumer, site: str, change: LowRank) -> None:
    """Put a change beside what the adapter does at the site already."""
    before = consumer.sites.get(site)
    if before is None:
        consumer.sites[site] = SiteEdit(low_rank=change)
        return
    if before.out_gain is not None or before.in_gain is not None or before.low_rank is None:
        raise consumer.needs_peft(f"trained tokens and gains (DoRA) both at {site}")
    both = LowRank(
        a=np.concatenate([before.low_rank.a, change.a], axis=1), b=np.concatenate([before.low_rank.b, change.b], axis=0)
    )
    consumer.sites[site] = SiteEdit(low_rank=both)
