"""Accuracy on labelled rows, in ONNX Runtime and under PEFT on the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..base.parity import reference_outputs
from ..data import Examples
from ..metrics import Scored
from ..report.accuracy import Accuracy, Beside, count_same
from ..report.answers import expected_answers, given_answers, number_error
from ..runtime import Runtime, View
from .answered import BATCH, class_scored


def view_of(runtime: Runtime, adapter: str | None) -> View:
    """The view that answers for an adapter (``None``: the base); in a merged bundle there is one for all."""
    return runtime.adapter(adapter) if adapter is not None and runtime.manifest.mode == "swap" else runtime.base


def run_rows(view: View, examples: Examples, module: Any | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits ``[rows, labels]`` of the view, and of the PyTorch ``module`` on the same token arrays."""
    order = sorted(range(len(examples)), key=lambda row: len(examples.texts[row]))
    mine: list[np.ndarray | None] = [None] * len(examples)
    theirs: list[np.ndarray | None] = [None] * len(examples)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        texts: Any = [
            examples.texts[r] if examples.pairs is None else (examples.texts[r], examples.pairs[r]) for r in rows
        ]
        inputs = view.encode(texts)
        found = view.forward(inputs)["logits"]
        reference = reference_outputs(module, inputs, ["logits"])["logits"] if module is not None else None
        for position, row in enumerate(rows):
            mine[row] = found[position]
            theirs[row] = None if reference is None else reference[position]
    return np.array(mine), None if module is None else np.array(theirs)


def accuracy(
    runtime: Runtime, adapter: str | None, examples: Examples, *, module: Any | None = None
) -> tuple[Accuracy, tuple[Scored, ...]]:
    """Accuracy of the runtime with ``adapter`` on labelled rows, and of ``module`` beside it where given; and the rows to score.

    A row whose logits are not finite numbers is answered wrong, and counted in ``not_finite``.
    """
    view = view_of(runtime, adapter)
    head = view.active.head
    expected_answers(
        examples.select([0]), head, len(view.labels or ()) or 1
    )  # a wrong column is said before rows are run
    mine, theirs = run_rows(view, examples, module)
    expected = expected_answers(examples, head, mine.shape[-1])
    numbers = head.kind(mine.shape[-1]) == "regression"
    chosen = given_answers(mine, head)
    peft = None
    if theirs is not None:
        other = given_answers(theirs, head)
        peft = Beside(
            hits=None if numbers else count_same(other, expected),
            same_label=None if numbers else count_same(chosen, other),
            max_difference=float(np.abs(mine - theirs).max()),
            error=number_error(theirs, expected, head) if numbers else None,
        )
    found = Accuracy(
        adapter=adapter,
        variant=runtime.variant,
        rows=len(examples),
        hits=None if numbers else count_same(chosen, expected),
        error=number_error(mine, expected, head) if numbers else None,
        spread=float(np.ptp(expected)) if numbers else None,
        data=Path(examples.source).name,
        not_finite=int((~np.isfinite(mine).all(axis=1)).sum()),
        peft=peft,
    )
    return found, class_scored(mine, examples, head, adapter, runtime.variant)
