"""Generalization: the same adapter on rows from elsewhere, and the base's own skill with the adapter off and on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import runtime as runtimes
from ..bundle import Bundle, head_of
from ..bundle.manifest_heads import base_head
from ..errors import DataError, InputError
from ..json_text import finite_json
from ..metrics import Measured, Metric, main_metrics, measure
from ..metrics.forms import Share
from ..metrics.intervals import Interval, newcombe_drop, paired_drop, percentile_interval
from ..report import format_cell
from ..report.gate import Cell, Gate, Report, Table
from ..report.partial import Keep, keep_nothing
from ..runtime import Runtime
from ..targets import GeneralizationRules
from .accuracy import view_of
from .chunks import ALONE, ChunksOf
from .loss_grade import graded, how_sure
from .quality import Rows, answer_rows, check_rows, task_of_head


@dataclass(frozen=True)
class Generalization:
    """One adapter and variant on one file, in its domain or out of it.

    ``drop`` is the score in domain minus this one (of other rows). ``forgetting`` is what the adapter takes from the base on the
    same rows: points of the score, or of a perplexity its rise as a share; below 0 it is a gain. ``None``: not comparable, or the
    base has no head for these rows.
    """

    adapter: str
    variant: str
    data: str
    domain: Literal["in", "out"]
    metric: Metric
    rows: int
    score: Interval
    base: Interval | None = None
    drop: Interval | None = None
    forgetting: Interval | None = None

    @property
    def name(self) -> str:
        """How gates call it."""
        return f"{self.adapter} {self.variant} on {self.data}"

    def gates(self, rules: GeneralizationRules) -> tuple[Gate, ...]:
        """A gate for each loss that ``rules`` limit."""
        if self.domain == "in":
            return ()
        limits = (("drop", self.drop, rules.max_drop), ("forgetting", self.forgetting, rules.max_forgetting))
        return tuple(
            Gate.within(
                f"generalization {what}: {self.name}",
                loss.estimate,
                (loss.lower, loss.upper),
                limit,
                "share",
                f"{self.metric.title}, {loss.confidence:.0%} interval {loss.lower:+.3f} to {loss.upper:+.3f}, {self.rows} rows",
            )
            for what, loss, limit in limits
            if loss is not None and limit is not None
        )

    def warnings(self, rules: GeneralizationRules) -> tuple[str, ...]:
        """What to say of losses that are worth a warning (:func:`.loss_grade.graded`)."""
        if self.domain == "in":
            return ()
        said = []
        if self.drop is not None and (grade := graded(self.drop, rules.max_drop)):
            said.append(
                f"WARNING: {self.name}: what was learnt does not carry over: {self.metric.title} {self.score.estimate:.3f}, "
                f"{_points(self.drop)} below that in domain: {how_sure(grade, rules.max_drop)}"
            )
        if self.forgetting is not None and (grade := graded(self.forgetting, rules.max_forgetting)):
            said.append(
                f"WARNING: {self.name}: the gain in domain is paid for here: {self.metric.title} {self.score.estimate:.4g}, the "
                f"base alone has {0.0 if self.base is None else self.base.estimate:.4g} ({_points(self.forgetting)} worse): "
                f"{how_sure(grade, rules.max_forgetting)}"
            )
        return tuple(said)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""

        def ends(value: Interval | None) -> dict[str, float] | None:
            return None if value is None else {"value": value.estimate, "lower": value.lower, "upper": value.upper}

        return {
            "adapter": self.adapter,
            "variant": self.variant,
            "data": self.data,
            "domain": self.domain,
            "metric": self.metric.name,
            "rows": self.rows,
            "score": ends(self.score),
            "base": ends(self.base),
            "drop": ends(self.drop),
            "forgetting": ends(self.forgetting),
        }


def _points(loss: Interval) -> str:
    return f"{100 * loss.estimate:.1f} points (interval {100 * loss.lower:.1f} to {100 * loss.upper:.1f})"


def adapters_of(
    bundle: Bundle, data: Mapping[str, Rows], general: Sequence[Rows], chosen: set[str]
) -> dict[str, list[Rows]]:
    """Which adapters are judged on which general rows: those with rows in domain whose labels the rows have.

    Of a language model every adapter is, since each is compared with the base.

    Raises:
        InputError: There are general rows, and none in domain.
        DataError: Rows fit no adapter: what is wrong with the first.
    """
    names = [*data] or (sorted(chosen) if bundle.manifest.decodes else [])
    if general and not names:
        raise InputError("--general compares with rows in the adapter's domain, and none were given: --data NAME=FILE")
    found: dict[str, list[Rows]] = {name: [] for name in names}
    for rows in general:
        why: DataError | None = None
        fits = False
        for name in names:
            try:
                check_rows(bundle, name, rows)
            except DataError as error:
                why = why or error
                continue
            fits = True
            found[name].append(rows)
        if not fits and why is not None:
            raise DataError(
                f"{why}; these rows fit no adapter that has rows in its domain ({', '.join(names)})"
            ) from why
    return {name: mine for name, mine in found.items() if mine}


def generalization(
    bundle: Bundle,
    data: Mapping[str, Rows],
    fitting: Mapping[str, Sequence[Rows]],
    variants: Sequence[str],
    open_variant: Callable[[str], Runtime],
    measured: Sequence[Measured] = (),
    progress: Callable[[str], None] = lambda message: None,
    chunks: ChunksOf | None = None,
) -> Iterator[Generalization]:
    """Measure adapters on rows from elsewhere, and the base on the same, one after the other as it is asked for.

    Args:
        bundle: The bundle.
        data: Rows in domain, by adapter.
        fitting: What :func:`adapters_of` gives.
        variants: Which ones.
        open_variant: Opens one.
        measured: What was measured in domain already.
        progress: Is called with a line of text for each step.
        chunks: Where answers are kept.

    Yields:
        For each adapter and variant its rows in domain and then the others.
    """
    base_scores: dict[tuple[str, str], tuple[Measured, ...]] = {}
    for variant in variants:
        for name, others in fitting.items():
            inside: dict[str, Measured] = {}
            for domain, rows in [
                *(("in", data[name]) for _ in [0] if name in data),
                *(("out", each) for each in others),
            ]:
                progress(f"generalization of {name}, {variant}: {Path(rows.source).name}")
                runtime = open_variant(variant)
                mine = _known(measured, name, variant) if domain == "in" else ()
                mine = mine or _measured(runtime, name, rows, chunks)
                answers = _base_answers(bundle, runtime, name)
                key = (variant, rows.source)
                if answers and key not in base_scores:
                    base_scores[key] = _measured(runtime, None, rows, chunks)
                for each in mine:
                    base = next((b for b in base_scores.get(key, ()) if answers and b.metric is each.metric), None)
                    yield compared(each, base, inside.get(each.scored.kind), domain == "in")
                    if domain == "in":
                        inside[each.scored.kind] = each


def _known(measured: Sequence[Measured], name: str, variant: str) -> tuple[Measured, ...]:
    main = main_metrics()
    return tuple(m for m in measured if (m.scored.adapter, m.scored.variant) == (name, variant) and m.metric in main)


def _measured(runtime: Runtime, name: str | None, rows: Rows, chunks: ChunksOf | None) -> tuple[Measured, ...]:
    mine = ALONE if chunks is None else chunks(runtime.variant, name, rows)
    _, scored = answer_rows(runtime, name, rows, write=False, chunks=mine)
    return tuple(each for mine in scored for each in measure(mine, metrics=main_metrics()))


def _base_answers(bundle: Bundle, runtime: Runtime, name: str) -> bool:
    """Whether the base has a trained head for the rows of an adapter."""
    manifest = bundle.manifest
    if manifest.mode != "swap":
        return False
    if manifest.decodes:
        return True
    task = task_of_head(manifest, name)
    if task != manifest.task or view_of(runtime, None).labels_are_untrained:
        return False
    if task == "feature-extraction":
        return True
    # Classes by other names, or as many of them, are other classes.
    return base_head(manifest).labels == head_of(manifest, name).labels


def compared(mine: Measured, base: Measured | None, inside: Measured | None, is_inside: bool) -> Generalization:
    """Rows that were scored beside the base on the same rows and the adapter in its domain, where there are such."""
    relative = mine.metric.name == "perplexity"
    return Generalization(
        adapter=mine.name,
        variant=mine.scored.variant,
        data=mine.scored.data,
        domain="in" if is_inside else "out",
        metric=mine.metric,
        rows=len(mine.scored),
        score=mine.interval,
        base=None if base is None else base.interval,
        # How hard two texts are to predict says nothing of a model.
        drop=None if inside is None or relative else _drop(inside, mine),
        forgetting=None if base is None else _rise(base, mine) if relative else _forgotten(base, mine),
    )


def _drop(inside: Measured, outside: Measured) -> Interval:
    """The score in domain minus that of other rows."""
    if isinstance(inside.metric.form, Share):
        hits = [int(np.sum(inside.metric.form.right(m.scored.labels, m.scored.outputs))) for m in (inside, outside)]
        return newcombe_drop(hits[0], len(inside.scored), hits[1], len(outside.scored), inside.interval.confidence)
    # The draws of both were made by one seed: shuffled, so that they do not pair.
    draws = inside.draws - np.random.default_rng(1).permutation(outside.draws)
    return percentile_interval(inside.value - outside.value, draws, inside.interval.confidence)


def _forgotten(base: Measured, mine: Measured) -> Interval:
    """The base's score minus the adapter's, on the same rows."""
    if isinstance(mine.metric.form, Share):
        before, after = (mine.metric.form.right(m.scored.labels, m.scored.outputs).tolist() for m in (base, mine))
        return paired_drop(before, after, mine.interval.confidence)
    return percentile_interval(base.value - mine.value, base.draws - mine.draws, mine.interval.confidence)


def _rise(base: Measured, mine: Measured) -> Interval:
    """The rise of a perplexity over the base's, as a share, on the same rows."""
    return percentile_interval(mine.value / base.value - 1, mine.draws / base.draws - 1, mine.interval.confidence)


def with_generalization(
    report: Report,
    bundle: Bundle,
    data: Mapping[str, Rows],
    fitting: Mapping[str, Sequence[Rows]],
    variants: Sequence[str],
    rules: GeneralizationRules,
    progress: Callable[[str], None],
    keep: Keep = keep_nothing,
) -> Report:
    """A report with :func:`generalization`'s gates, table, warnings and data added, run natively here; as it is without rows."""
    found: list[Generalization] = []

    def so_far() -> Report:
        return replace(
            report,
            gates=(*report.gates, *(gate for each in found for gate in each.gates(rules))),
            tables=(*report.tables, *generalization_table(found)),
            notes=(*report.notes, *(said for each in found for said in each.warnings(rules))),
            data={**report.data, "generalization": finite_json([each.as_dict() for each in found])},
        )

    def open_variant(variant: str) -> Runtime:
        return runtimes.open(bundle.path, variant=variant)

    if not fitting:
        return report
    keep(so_far)
    for each in generalization(bundle, data, fitting, variants, open_variant, progress=progress):
        found.append(each)
    return so_far()


def generalization_table(found: Sequence[Generalization]) -> list[Table]:
    """In domain, out of domain, and what the base can do by itself."""
    if not found:
        return []

    return [
        Table(
            "Generalization: in domain and out of it, with 95 % intervals; losses in points",
            ("adapter", "variant", "data", "domain", "metric", "rows", "score", "drop", "base alone", "forgotten"),
            tuple(
                (g.adapter, g.variant, g.data, g.domain, g.metric.title, g.rows, _with_ends(g.score), _with_ends(g.drop, 100),
                 _with_ends(g.base), _with_ends(g.forgetting, 100))
                for g in found
            ),
        )
    ]  # fmt: skip


def _with_ends(value: Interval | None, scale: float = 1) -> Cell:
    """A number with the ends of its interval, as one cell: beside each other they would take ten columns."""
    if value is None or not math.isfinite(value.estimate):
        return None
    estimate, lower, upper = (format_cell(scale * each) for each in (value.estimate, value.lower, value.upper))
    return f"{estimate} [{lower}, {upper}]"
