"""What a search for settings found: its winner trained on all rows and written, and the table of what was tried."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..metrics.intervals import Interval
from .adapter_result import TrainedAdapter, finish
from .loop import Course, Scores
from .methods import Settings
from .tune_search import Search

if TYPE_CHECKING:
    from .trials import Trial
    from .tune_cost import TargetCosts
    from .workbench import Workbench


@dataclass(frozen=True)
class TriedRow:
    """One line of the table of what was tried: ``accuracy`` out of fold and ``change`` from the winner, with 95 % intervals.

    ``added_ms`` is what it adds to a run on the target, where there is one.
    """

    stage: str
    what: str
    steps: int
    accuracy: Interval
    change: Interval | None
    loss: float
    seconds: float
    added_ms: float | None = None


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    ``chosen`` says what the adapter is, ``why`` why that. ``judged_rows`` were judged out of fold, ``folds`` times trained.
    ``range_rate`` is the learning rate that the range test began with. ``left`` says what was not tried for want of time; a
    larger budget may bring it.
    """

    chosen: str
    why: str
    tried: tuple[TriedRow, ...]
    judged_rows: int
    folds: int
    range_rate: float
    seconds: float
    left: tuple[str, ...]
    warnings: tuple[str, ...]
    adapter: TrainedAdapter


def finished(
    bench: Workbench,
    search: Search,
    folder: Path,
    arguments: dict[str, Any],
    rate: float,
    began: float,
    said: list[str],
    costs: TargetCosts | None = None,
    told: str | None = None,
) -> Tuning:
    """Train the winner on all rows, write it, and tell what was tried, with what it ``costs`` on a target and why that ``told``.

    Raises:
        InputError: The winner's loss became no number on all rows.
    """
    from .steps import NotFiniteLossError
    from .trials import trained

    best = search.best
    assert best is not None  # the caller looked
    searched = time.monotonic() - began
    start = time.perf_counter()
    steps = best.steps * len(bench.rows) // len(search.folds[0][0])  # as many epochs as in a fold
    try:
        run = trained(bench, best.candidate, bench.rows, steps, search.batch_size, search.seed, search.threads)
    except NotFiniteLossError as error:
        raise InputError(f"{best.candidate.describe()}, the best that was tried: {error}") from error
    course = _course(bench, search, best, run)
    adapter = finish(
        bench,
        run.model,
        course,
        folder,
        {**arguments, "chosen": best.candidate.describe()},
        time.perf_counter() - start,
        extra={"tuning": [_as_record(trial, costs) for trial in search.trials]},
        judged=None if bench.held else [bench.rows[place] for place in best.places],
    )
    tried = tuple(
        TriedRow(
            stage=trial.stage,
            what=trial.candidate.describe(),
            steps=trial.steps_made,
            accuracy=trial.interval,
            change=None if trial is best else trial.minus(best),
            loss=float(trial.loss.mean()),
            seconds=trial.seconds,
            added_ms=None if costs is None else costs.of(trial.candidate),
        )
        for trial in search.trials
    )
    return Tuning(
        chosen=best.candidate.describe(),
        why="; ".join(filter(None, (_why(search, best), told))),
        tried=tried,
        judged_rows=len(best.right),
        folds=best.folds,
        range_rate=rate,
        seconds=searched,
        left=tuple(search.left),
        warnings=tuple(said) + adapter.warnings,
        adapter=adapter,
    )


def _course(bench: Workbench, search: Search, best: Trial, run: Any) -> Course:
    """The winner's scores as a course: on the validation rows where there are some, else out of fold."""
    untrained = bench.fresh(Settings("head-only"), search.seed)
    rows = bench.held or bench.rows
    trained_model = run.model
    with run:
        run.model = untrained.to(run.device)
        run.keep_states(bench.held)
        logits, loss = run.evaluate(rows)
        targets = np.array([row.target for row in rows])
        before = Scores(loss=loss, **bench.problem.score(logits, targets))
        logits_before, logits_after = logits, None
        row_before = bench.problem.row_scores(logits, targets)
        run.model = trained_model
        run.keep_states(bench.held)
        if bench.held:
            logits, loss = run.evaluate(rows)
            after = Scores(loss=loss, **bench.problem.score(logits, targets))
            logits_after = logits
            row_after = bench.problem.row_scores(logits, targets)
        else:
            after = Scores(best.accuracy, None, float(best.loss.mean()))
            row_before = row_before[list(best.places)]
            row_after = (best.right > 0.5).astype(np.float64)  # right in most of its folds
            before = replace(before, accuracy=float(row_before.mean()))
    return Course(
        before=before,
        after=after,
        train_loss=(float(np.mean(run.losses)),) if run.losses else (),
        best_epoch=1,
        row_before=row_before,
        row_after=row_after,
        threads=run.threads,
        cached_layers=run.cached_layers,
        step_loss=tuple(run.losses),
        logits_before=None if logits_after is None else logits_before,
        logits_after=logits_after,
    )


def _why(search: Search, best: Trial) -> str:
    others = [trial for trial in search.trials if trial is not best and not trial.first_round]
    ties = sum(trial.minus(best).upper >= 0 for trial in others)
    head = next((trial for trial in search.trials if trial.candidate.kind == "features"), None)
    said = f"accuracy {best.accuracy:.3f} out of fold"
    if others:
        said += f"; {ties} of {len(others)} other settings with all their steps are not shown to be worse"
    if head is not None and best.candidate.kind != "features":
        change = best.minus(head)
        said += f"; {change.estimate:+.3f} [{change.lower:+.3f}, {change.upper:+.3f}] against a head on frozen features"
    return said


def _as_record(trial: Trial, costs: TargetCosts | None) -> dict[str, Any]:
    interval = trial.interval
    return {
        "stage": trial.stage,
        "what": trial.candidate.describe(),
        "steps": trial.steps_made,
        "accuracy": interval.estimate,
        "lower": interval.lower,
        "upper": interval.upper,
        "loss": float(trial.loss.mean()),
        "seconds": round(trial.seconds, 3),
        "added_ms": None if costs is None else costs.of(trial.candidate),
    }
