"""Quality numbers of adapters and variants on rows with right answers, and the tables that show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bundle import Bundle, Manifest, head_of
from ..data import Examples
from ..errors import InputError
from ..metrics import Comparison, Measured, Scored, missing_extras
from ..report.accuracy import Accuracy
from ..report.answers import expected_answers
from ..report.gate import Cell, Table
from ..runtime import Runtime
from .accuracy import accuracy, view_of
from .answered import expected_tags, similarity_scored, tags_scored
from .chunks import ALONE, Chunks
from .language_rows import LanguageRows
from .likelihood import language_scored

#: Rows with right answers, as the task has them.
Rows = Examples | LanguageRows


def answer_rows(
    runtime: Runtime,
    adapter: str | None,
    rows: Rows,
    *,
    module: Any | None = None,
    against: Runtime | None = None,
    write: bool = True,
    chunks: Chunks = ALONE,
) -> tuple[Accuracy | None, tuple[Scored, ...]]:
    """Run rows with an adapter (``None``: the base) in one variant.

    Args:
        runtime: The variant.
        adapter: The adapter's name.
        rows: Labelled rows, or a language model's.
        module: The PEFT model to run beside a classifier.
        against: The bundle in fp32, for a language model's divergences.
        write: Whether a language model generates too.
        chunks: How many rows are run at a time, and where their answers are kept.

    Returns:
        A classifier's accuracy, and the rows to score.

    Raises:
        InputError: The task has no metric, or the rows are another task's.
    """
    view = view_of(runtime, adapter)
    if isinstance(rows, LanguageRows):
        reference = None if against is None or against.variant == runtime.variant else view_of(against, adapter)
        return None, language_scored(view, adapter, rows, Path(rows.source).name, reference, write=write, chunks=chunks)
    match view.task:
        case "text-classification":
            return accuracy(runtime, adapter, rows, module=module, chunks=chunks)
        case "token-classification":
            return None, tags_scored(view, rows, adapter, chunks)
        case "feature-extraction":
            return None, similarity_scored(view, rows, adapter, chunks)
    raise InputError(f"{runtime.bundle.path} is for {view.task}, whose answers no metric judges")


def check_rows(bundle: Bundle, adapter: str | None, rows: Rows) -> None:
    """Refuse rows that do not fit an adapter, before a model is loaded.

    Raises:
        InputError: They are rows for another task.
        DataError: Names the first row with a label that the adapter does not know.
    """
    manifest = bundle.manifest
    sounds = rows.sounds if isinstance(rows, LanguageRows) else False
    if isinstance(rows, LanguageRows) != manifest.decodes or sounds != manifest.hears:
        raise InputError(
            f"{rows.source or 'the rows'}: {bundle.path} is for {manifest.task}, which these rows are not for"
        )
    if isinstance(rows, LanguageRows):
        return
    head = head_of(manifest, adapter)
    if task_of_head(manifest, adapter) == "token-classification":
        expected_tags(rows, head)
    elif task_of_head(manifest, adapter) == "text-classification" and head.labels is not None:
        expected_answers(rows, head, len(head.labels))


def task_of_head(manifest: Manifest, adapter: str | None) -> str:
    """What an adapter (``None``: the base) is for."""
    return head_of(manifest, adapter).task or manifest.task


def quality_tables(measured: Sequence[Measured], comparisons: Sequence[Comparison]) -> list[Table]:
    """Every metric with its interval, and the variants compared."""
    tables = []
    if measured:
        confidence = measured[0].interval.confidence
        tables.append(
            Table(
                f"Quality with {confidence:.0%} intervals",
                ("adapter", "variant", "data", "metric", "value", "lower", "upper", "rows", "interval"),
                tuple(
                    (m.name, m.scored.variant, m.scored.data, m.metric.title, number(m.value), number(m.interval.lower),
                     number(m.interval.upper), len(m.scored), m.metric.method)
                    for m in measured
                ),
            )
        )  # fmt: skip
    if comparisons:
        tables.append(
            Table(
                "Variants compared on the same rows",
                ("adapter", "data", "metric", "variant", "against", "change", "lower", "upper", "p", "p (Holm)", "verdict"),
                tuple(
                    (c.name, c.data, c.title, c.variant, c.reference, number(c.change.estimate), number(c.change.lower),
                     number(c.change.upper), c.p_value, c.corrected, c.verdict())
                    for c in comparisons
                ),
            )
        )  # fmt: skip
    return tables


def number(value: float) -> Cell:
    """A cell for a number that rows may not have."""
    return value if math.isfinite(value) else None


def missing_note(scored: Sequence[Scored]) -> str:
    """What to say of metrics that are left out; empty where none is."""
    missing = missing_extras([each.kind for each in scored])
    return f"not measured: {', '.join(missing)}; pip install 'edgepeft[metrics]'" if missing else ""
