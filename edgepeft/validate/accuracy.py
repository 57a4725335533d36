"""Accuracy on labelled rows, in ONNX Runtime and under PEFT on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.parity import reference_outputs
from ..data import Examples
from ..errors import DataError
from ..report.accuracy import Accuracy, Beside, chosen_labels, count_same
from ..runtime import Runtime, View

#: Rows are run sorted by length in batches of this size, so that padding costs little and is still exercised.
BATCH = 32


def label_ids(examples: Examples, labels: Sequence[str]) -> np.ndarray:
    """Row labels as positions in ``labels``; :class:`DataError` names a label that the adapter does not know.

    Data have the names of labels, or their numbers: where no row has a name, whole numbers below the count are positions.
    """
    if examples.labels is None:
        raise DataError(f"{examples.source} was read without labels")
    index = {label: i for i, label in enumerate(labels)}
    if not any(label in index for label in examples.labels):
        index = {str(i): i for i in range(len(labels))}
    unknown = next((row for row, label in enumerate(examples.labels) if label not in index), None)
    if unknown is not None:
        raise DataError(
            f"{examples.where(unknown)}: label {examples.labels[unknown]!r} is not one of the adapter's: {', '.join(labels)} "
            f"(or 0 to {len(labels) - 1}). Names are given by: edgepeft relabel BUNDLE --labels NAME=a,b,…"
        )
    return np.array([index[label] for label in examples.labels])


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


def accuracy(runtime: Runtime, adapter: str | None, examples: Examples, *, module: Any | None = None) -> Accuracy:
    """Accuracy of the runtime with ``adapter`` on labelled rows, and of ``module`` beside it where given.

    A row whose logits are not finite numbers is answered wrong, and counted in ``not_finite``.
    """
    view = runtime.adapter(adapter) if adapter is not None and runtime.manifest.mode == "swap" else runtime.view
    labels = view.labels or ()
    expected = label_ids(examples, labels)
    mine, theirs = run_rows(view, examples, module)
    chosen = chosen_labels(mine)
    peft = None
    if theirs is not None:
        other = chosen_labels(theirs)
        peft = Beside(
            hits=count_same(other, expected),
            same_label=count_same(chosen, other),
            max_difference=float(np.abs(mine - theirs).max()),
        )
    return Accuracy(
        adapter=adapter,
        variant=runtime.variant,
        rows=len(examples),
        hits=count_same(chosen, expected),
        data=Path(examples.source).name,
        not_finite=int((~np.isfinite(mine).all(axis=1)).sum()),
        peft=peft,
    )
