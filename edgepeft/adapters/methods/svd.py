"""Factoring a delta weight by SVD, and the rule that says when the factors are worth swapping."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..edits import Array, Exactness, LowRank

#: Largest ``||Δ - AB|| / ||Δ||`` (Frobenius) that is accepted without a rank being asked for.
RESIDUAL = 1e-4


def factor(delta: Array, *, max_rank: int | None = None, residual: float = RESIDUAL) -> tuple[LowRank, Exactness]:
    """``delta`` (``[in, out]``) as ``A B`` at the smallest rank whose relative residual is at most ``residual``.

    ``max_rank`` caps the rank; the residual that is reached is reported either way. Computed in float64.
    """
    u, s, vh = np.linalg.svd(np.asarray(delta, dtype=np.float64), full_matrices=False)
    total = float(np.linalg.norm(s))
    if total == 0.0:
        return LowRank(a=np.zeros((delta.shape[0], 0)), b=np.zeros((0, delta.shape[1]))), Exactness()
    tails = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)) / total  # what is lost by keeping k values
    rank = int(np.argmax(tails <= residual))
    if max_rank is not None:
        rank = min(rank, max_rank)
    root = np.sqrt(s[:rank])  # split evenly, so that neither factor overflows a smaller float type
    low_rank = LowRank(a=u[:, :rank] * root, b=root[:, None] * vh[:rank])
    return low_rank, Exactness(residual=float(tails[rank]), rank=rank)


def worst(found: list[Exactness]) -> Exactness:
    """The largest residual and rank among sites."""
    return Exactness(
        residual=max((e.residual for e in found), default=0.0), rank=max((e.rank for e in found), default=0)
    )


def not_worth_swapping(factors: Mapping[str, LowRank]) -> str:
    """Why factors should not be shipped: they hold more numbers than the merged matrices would. Empty where they do not.

    An adapter file that is larger than the weights it edits saves nothing, and its two MatMuls cost more than the site's
    own one.
    """
    held = sum(f.a.size + f.b.size for f in factors.values())
    merged = sum(f.a.shape[0] * f.b.shape[1] for f in factors.values())
    if held <= merged:
        return ""
    rank = max(f.rank for f in factors.values())
    return f"its change of the weights has rank {rank}: as two factors it holds {held} numbers, the merged matrices hold {merged}"
