"""Refusing outputs that are not numbers before they become a label, a score or a text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import NonFiniteError


def non_finite(what: str, adapter: str | None, variant: str, path: object) -> NonFiniteError:
    """The error for outputs that hold NaN or infinity.

    Args:
        what: Which outputs, and how many, for example ``2 of 6 numbers of output logits``.
        adapter: The adapter that was in use; ``None`` for the base.
        variant: The variant of the base.
        path: The bundle's folder.
    """
    who = f"adapter {adapter!r}" if adapter else "the base"
    remedy = (
        "add the adapter again, from a checkpoint whose weights are finite" if adapter else "export the bundle again"
    )
    return NonFiniteError(
        f"{path}: {who} in variant {variant} gives {what} that are not finite numbers. Try another variant, or {remedy}"
    )


def count_not_finite(outputs: Mapping[str, np.ndarray]) -> str:
    """Which outputs hold NaN or infinity, in words: ``2 of 6 numbers of output logits``; empty where all are finite."""
    bad = {name: int((~np.isfinite(array)).sum()) for name, array in outputs.items()}
    return ", ".join(
        f"{count} of {outputs[name].size} numbers of output {name}" for name, count in bad.items() if count
    )


def require_finite(output: np.ndarray, name: str, adapter: str | None, variant: str, path: object) -> np.ndarray:
    """``output`` as it is, if all of its numbers are finite; raises :class:`NonFiniteError` otherwise."""
    if said := count_not_finite({name: output}):
        raise non_finite(said, adapter, variant, path)
    return output
