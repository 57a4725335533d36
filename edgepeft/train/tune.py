"""``edgepeft tune``: find a good adapter by itself. Learning rate first, then where, then rank, then method."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Examples
from ..errors import InputError, MissingExtraError
from ..metrics.intervals import Interval
from .adapter import TrainedAdapter, finish
from .even_attention import key_site
from .loop import Course, Scores
from .methods import Settings
from .record import arguments_of, check_arguments, check_extra
from .source import load_rows

if TYPE_CHECKING:
    from .trials import Candidate, Kind, Trial
    from .workbench import Workbench

#: Up to so many labels a class a head on frozen features and contrast are tried with several penalties: little is learnt otherwise.
FEW_LABELS = 64
#: A search goes on with a new setting only where it is better by so many standard errors of the paired difference: of many that are
#: tried, some look better by chance.
_WORTH_ERRORS = 0.5
_LEAST_STEPS, _MOST_STEPS = 40, 400
_EPOCHS = 4
#: Penalties of logistic regression (its C) on frozen features: the fewer rows, the stronger the penalty that does best.
_PENALTIES = (0.003, 0.01, 0.1)
#: What is trained from even attention where labels are few, and the penalty of the head that it starts from: on MiniLM with 16
#: labels a class better than the frozen head by 3 to 7 points, which so few judgements seldom show.
_FEW: tuple[tuple[Kind, float], ...] = (("fine-tune", 7e-4), ("contrast", 3e-4))
_FEW_STRENGTH = 0.01


@dataclass(frozen=True)
class TriedRow:
    """One line of the table of what was tried: ``accuracy`` out of fold and ``change`` from the winner, with 95 % intervals."""

    stage: str
    what: str
    steps: int
    accuracy: Interval
    change: Interval | None
    loss: float
    seconds: float


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


class _Search:
    """Trials so far, the best of them, and the time that is left."""

    def __init__(
        self, bench: Workbench, budget_s: float, batch_size: int, seed: int, threads: int | None, announce: Any
    ) -> None:
        from .trials import make_folds

        self.bench, self.batch_size, self.seed, self.threads, self.announce = bench, batch_size, seed, threads, announce
        self.folds = make_folds([row.target for row in bench.rows], seed)
        self.steps = max(_LEAST_STEPS, min(_MOST_STEPS, _EPOCHS * -(-len(self.folds[0][0]) // batch_size)))
        self.ends = time.monotonic() + budget_s
        self.trials: list[Trial] = []
        self.best: Trial | None = None
        self.left: list[str] = []

    def time_left(self) -> bool:
        """Whether the budget is not used up."""
        return time.monotonic() < self.ends

    def stage(self, name: str, candidates: Sequence[Candidate], *, prefer: bool = False) -> None:
        """Successive halving: all candidates with a third of the steps, the better half with all. One may become the best.

        With ``prefer`` the first one that is tried becomes the best unless it is clearly worse.
        """
        short = max(_LEAST_STEPS // 2, self.steps // 3)
        if len(candidates) > 2 and candidates[0].kind != "features":  # whose fit takes no steps
            candidates = self._halved(name, candidates, short)
        for candidate in candidates:
            trial = self._try(name, candidate, self.steps)
            if trial is None:
                continue
            first, prefer = prefer, False
            if self.best is None or (
                not _clearly_better(self.best, trial) if first else _clearly_better(trial, self.best)
            ):
                self.best = trial

    def _halved(self, name: str, candidates: Sequence[Candidate], steps: int) -> list[Candidate]:
        tried = [trial for candidate in candidates if (trial := self._try(name, candidate, steps)) is not None]
        tried.sort(key=lambda trial: trial.key, reverse=True)
        return [trial.candidate for trial in tried[: -(-len(tried) // 2)]]

    def _try(self, name: str, candidate: Candidate, steps: int) -> Trial | None:
        from .trials import run_trial

        known = [trial.seconds / max(1, trial.steps) for trial in self.trials if trial.candidate.kind == candidate.kind]
        expected = steps * max(known, default=0.0)
        if self.trials and time.monotonic() + expected > self.ends:
            self.left.append(f"{candidate.describe()} ({steps} steps)")
            return None
        trial = run_trial(
            self.bench,
            candidate,
            self.folds,
            stage=name,
            steps=steps,
            batch_size=self.batch_size,
            seed=self.seed,
            threads=self.threads,
        )
        self.trials.append(trial)
        self.announce(
            f"{name}: {candidate.describe()}, {steps} steps: accuracy {trial.accuracy:.3f} in {trial.seconds:.0f} s"
        )
        return trial


def tune(
    model: str | Path,
    data: str | Path | Examples,
    out: str | Path,
    *,
    budget_s: float = 600.0,
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
    validation: str | Path | Examples | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Tuning:
    """Find a good adapter for labelled rows within a time, and write it, trained on all of them.

    What matters most comes first: a head on frozen features, as the base reads them and under even attention
    (:mod:`.even_attention`), which costs next to nothing; the learning rate, around what a range test
    gives; where LoRA goes; its rank; another method last. In each stage all candidates train a third of the steps and the better
    half all of them. They are judged out of fold, on the same folds; with up to 64 rows of a label teaching features by contrast
    is tried too. A new setting is taken only where it is better by half a standard error.

    Args:
        model: The base: a folder or a Hugging Face id.
        data: Labelled rows; all of them are used, to judge and in the end to train.
        out: The adapter's folder.
        budget_s: Seconds for the search; the last training comes on top. At least one setting is tried.
        text: The column of texts.
        label: The column of labels.
        pair: The column of second texts.
        validation: Rows that only the finished adapter is measured on.
        batch_size: Rows in a step.
        max_length: Tokens of a row.
        seed: Of the folds, initial weights and orders.
        threads: PyTorch's threads.
        announce: Is called with a line of text for each trial.

    Returns:
        What was tried and chosen, and the adapter.

    Raises:
        DataError: There is one label only, or fewer than four rows of one.
        InputError: An option is wrong.

    Example:
        >>> found = tune("org/model", "reviews.jsonl", "reviews-lora", budget_s=300)
        >>> found.chosen
        'lora r=8 all-linear, lr 0.002'
    """
    arguments = arguments_of({name: value for name, value in locals().items() if name != "announce"})
    folder = Path(out)
    check_arguments(folder, arguments, ("budget_s", "batch_size", "max_length", "threads"))
    check_extra()
    split = load_rows(data, validation, text=text, label=label, pair=pair)
    from ..base.load import check_source

    check_source(str(model))
    from .range_test import range_test
    from .trainer import seeded
    from .trials import Candidate
    from .workbench import open_workbench

    began = time.monotonic()
    with seeded(seed, threads):
        bench = open_workbench(model, split, max_length)
    search = _Search(bench, budget_s, batch_size, seed, threads, announce)
    counts = np.unique([row.target for row in bench.rows], return_counts=True)[1]
    few = int(counts.min()) <= FEW_LABELS
    said = list(split.warnings)
    lora = Settings("lora", rank=8, targets="all-linear")
    site = key_site(bench)
    said += _frozen_stage(search, site, few)
    if few and site is not None:
        start = Settings("dora", rank=8, targets=upper_half(bench) or "all-linear")
        search.stage(
            "few labels",
            [Candidate(replace(start, learning_rate=rate), kind, _FEW_STRENGTH, site) for kind, rate in _FEW],
            prefer=True,
        )
    rate = 0.0
    if search.time_left():
        found = range_test(bench, bench.rows, lora, batch_size=batch_size, seed=seed, threads=threads)
        rate = found.rate
        announce(f"range test: learning rate {rate:g}")
        _wider_stages(search, bench, lora, rate, few, site)
    else:
        search.left.append("learning rates, places, ranks and other methods")
    if search.best is None:
        raise InputError("no setting could be trained; lower --batch-size, or look at the texts")
    return _finished(bench, search, folder, arguments, rate, began, said)


def _frozen_stage(search: _Search, site: str | None, few: bool) -> list[str]:
    """Heads on frozen features, the base's own and those under even attention; what to say where they cannot be had."""
    from .trials import Candidate

    said = []
    starts: list[tuple[Settings, str | None]] = [(Settings("head-only"), None)]
    if site is not None:
        starts.insert(0, (Settings("dora", rank=1, ranks=((site, 1),)), site))
    for settings, even in starts:
        penalties = _PENALTIES if few else _PENALTIES[1:]
        try:
            search.stage("frozen features", [Candidate(settings, "features", c, even) for c in penalties])
        except (MissingExtraError, InputError) as error:
            under = " under even attention" if even else ""
            said.append(f"a head on frozen features{under} was not tried: {error}")
    return said


def _wider_stages(search: _Search, bench: Workbench, lora: Settings, rate: float, few: bool, site: str | None) -> None:
    """The learning rate around that of the range test, then where, the rank, and other methods and starts."""
    from .trials import Candidate

    search.stage("learning rate", [Candidate(replace(lora, learning_rate=each)) for each in (rate, rate / 3, rate * 3)])
    tuned = _best_rate(search, replace(lora, learning_rate=rate))
    if few:
        search.stage("contrast", [Candidate(tuned, "contrast", c) for c in (0.01, 1.0)])
    best = search.best.candidate if search.best is not None else Candidate(tuned)
    trains = best.kind != "features"
    kind, base, even = (best.kind, best.settings, best.even) if trains else ("fine-tune", tuned, None)
    wheres: list[str | tuple[str, ...] | None] = ["all-linear", upper_half(bench)]
    if even is None:  # else the projection of keys must be among them
        wheres.append(None)  # the attention projections that are usual for the architecture

    def like(settings: Settings) -> Candidate:
        return Candidate(settings, kind, best.strength, even if settings.method == "dora" else None)

    elsewhere = [where for where in wheres if where not in {base.targets, ()}]
    search.stage("where", [like(replace(base, targets=where)) for where in elsewhere])
    base = _going_on(search, base)
    search.stage("rank", [like(replace(base, rank=rank)) for rank in (2, 32)])
    base = _going_on(search, base)
    others = [
        like(replace(base, method="lora" if base.method == "dora" else "dora")),
        like(Settings("ln", learning_rate=3 * base.rate)),
    ]
    if site is not None and even is None and not few:
        others.append(Candidate(replace(base, method="dora", targets="all-linear"), "fine-tune", _PENALTIES[1], site))
    search.stage("method", others)


def upper_half(bench: Workbench) -> tuple[str, ...]:
    """The linear layers of the upper half of the network's blocks; empty where there are fewer than two.

    The lower half is then frozen, and run once a row instead of once a step.
    """
    from .sensitivity import linear_names

    numbered = [(name, found) for name in linear_names(bench) if (found := re.search(r"\.(\d+)\.", name))]
    layers = sorted({int(found.group(1)) for _, found in numbered})
    if len(layers) < 2:
        return ()
    middle = layers[len(layers) // 2]
    return tuple(name for name, found in numbered if int(found.group(1)) >= middle)


def _best_rate(search: _Search, default: Settings) -> Settings:
    """The best fine-tuning so far among those with the most steps, whether or not it beats a head on frozen features."""
    tried = [trial for trial in search.trials if trial.candidate.kind == "fine-tune" and trial.candidate.even is None]
    if not tried:
        return default
    most = max(trial.steps for trial in tried)
    return max((trial for trial in tried if trial.steps == most), key=lambda trial: trial.key).candidate.settings


def _going_on(search: _Search, base: Settings) -> Settings:
    """The settings that later stages vary: those of the best trial that has any."""
    if search.best is None or search.best.candidate.kind == "features":
        return base
    return search.best.candidate.settings


def _clearly_better(trial: Trial, best: Trial) -> bool:
    change = trial.minus(best)
    error = (change.upper - change.lower) / (2 * 1.96)
    return change.estimate > _WORTH_ERRORS * error


def _finished(
    bench: Workbench,
    search: _Search,
    folder: Path,
    arguments: dict[str, Any],
    rate: float,
    began: float,
    said: list[str],
) -> Tuning:
    """Train the winner on all rows, write it, and tell what was tried."""
    from .trials import trained

    best = search.best
    assert best is not None  # the caller looked
    searched = time.monotonic() - began
    start = time.perf_counter()
    steps = search.steps * len(bench.rows) // len(search.folds[0][0])  # as many epochs as in a fold
    run = trained(bench, best.candidate, bench.rows, steps, search.batch_size, search.seed, search.threads)
    course = _course(bench, search, best, run)
    adapter = finish(
        bench,
        run.model,
        course,
        folder,
        {**arguments, "chosen": best.candidate.describe()},
        time.perf_counter() - start,
        extra={"tuning": [_as_record(trial) for trial in search.trials]},
        judged=None if bench.held else bench.split.train.select(_places(search)).labels,
    )
    tried = tuple(
        TriedRow(
            stage=trial.stage,
            what=trial.candidate.describe(),
            steps=trial.steps,
            accuracy=trial.interval,
            change=None if trial is best else trial.minus(best),
            loss=float(trial.loss.mean()),
            seconds=trial.seconds,
        )
        for trial in search.trials
    )
    return Tuning(
        chosen=best.candidate.describe(),
        why=_why(search, best),
        tried=tried,
        judged_rows=len(best.right),
        folds=len(search.folds),
        range_rate=rate,
        seconds=searched,
        left=tuple(search.left),
        warnings=tuple(said) + adapter.warnings,
        adapter=adapter,
    )


def _course(bench: Workbench, search: _Search, best: Trial, run: Any) -> Course:
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
        row_before = bench.problem.row_scores(logits, targets)
        run.model = trained_model
        run.keep_states(bench.held)
        if bench.held:
            logits, loss = run.evaluate(rows)
            after = Scores(loss=loss, **bench.problem.score(logits, targets))
            row_after = bench.problem.row_scores(logits, targets)
        else:
            after = Scores(best.accuracy, None, float(best.loss.mean()))
            row_before = row_before[_places(search)]
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
    )


def _places(search: _Search) -> list[int]:
    """The training rows that were judged out of fold."""
    return sorted({place for _, held in search.folds for place in held})


def _why(search: _Search, best: Trial) -> str:
    others = [trial for trial in search.trials if trial is not best and trial.steps == best.steps]
    ties = sum(trial.minus(best).upper >= 0 for trial in others)
    head = next((trial for trial in search.trials if trial.candidate.kind == "features"), None)
    said = f"accuracy {best.accuracy:.3f} out of fold"
    if others:
        said += f"; {ties} of {len(others)} other settings with as many steps are not shown to be worse"
    if head is not None and best.candidate.kind != "features":
        change = best.minus(head)
        said += f"; {change.estimate:+.3f} [{change.lower:+.3f}, {change.upper:+.3f}] against a head on frozen features"
    return said


def _as_record(trial: Trial) -> dict[str, Any]:
    interval = trial.interval
    return {
        "stage": trial.stage,
        "what": trial.candidate.describe(),
        "steps": trial.steps,
        "accuracy": interval.estimate,
        "lower": interval.lower,
        "upper": interval.upper,
        "loss": float(trial.loss.mean()),
        "seconds": round(trial.seconds, 3),
    }
