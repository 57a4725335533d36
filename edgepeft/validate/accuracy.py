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
from .chunks import ALONE, Chunks


def view_of(runtime: Runtime, adapter: str | None) -> View:
    """The view that answers for an adapter (``None``: the base); in a merged bundle there is one for all."""
    return runtime.adapter(adapter) if adapter is not None and runtime.manifest.mode == "swap" else runtime.base


def run_rows(
    view: View, examples: Examples, module: Any | None, chunks: Chunks = ALONE
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits ``[rows, labels]`` of the view, and of the PyTorch ``module`` on the same token arrays."""
    found = chunks.run(len(examples), "logits", lambda places: _logits(view, examples, module, places))
    return found["mine"], found.get("theirs")


def _logits(view: View, examples: Examples, module: Any | None, places: range) -> dict[str, np.ndarray]:
    texts: list[Any] = [
        examples.texts[row] if examples.pairs is None else (examples.texts[row], examples.pairs[row]) for row in places
    ]
    first = texts if examples.pairs is None else [text for text, _ in texts]
    order = sorted(range(len(texts)), key=lambda place: len(first[place]))
    mine: list[np.ndarray | None] = [None] * len(texts)
    theirs: list[np.ndarray | None] = [None] * len(texts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        inputs = view.encode([texts[row] for row in rows])
        found = view.forward(inputs)["logits"]
        reference = reference_outputs(module, inputs, ["logits"])["logits"] if module is not None else None
        for position, row in enumerate(rows):
            mine[row] = found[position]
            theirs[row] = None if reference is None else reference[position]
    return {"mine": np.array(mine), **({} if module is None else {"theirs": np.array(theirs)})}


def accuracy(
    runtime: Runtime, adapter: str | None, examples: Examples, *, module: Any | None = None, chunks: Chunks = ALONE
) -> tuple[Accuracy, tuple[Scored, ...]]:
    """Accuracy of the runtime with ``adapter`` on labelled rows, and of ``module`` beside it where given; and the rows to score.

    A row whose logits are not finite numbers is answered wrong, and counted in ``not_finite``.
    """
    view = view_of(runtime, adapter)
    head = view.active.head
    expected_answers(
        examples.select([0]), head, len(view.labels or ()) or 1
    )  # a wrong column is said before rows are run
    mine, theirs = run_rows(view, examples, module, chunks)
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
