"""``--modules auto``: ranks where a sensitivity map says, against uniform ranks of the same cost, and the better kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.heads import ProblemType
from ..errors import InputError
from ..metrics.intervals import Interval
from .adapter_result import TrainedAdapter, finish
from .compare import score_interval
from .gain import paired_change
from .loop import Course, Schedule
from .methods import settings_of
from .processes import check_alone
from .record import arguments_of, check_arguments, check_extra
from .source import Rows, load_split

if TYPE_CHECKING:
    from ..targets import Target
    from .sensitivity import Measure


@dataclass(frozen=True)
class RankChoice:
    """Chosen ranks against uniform ones of the same cost.

    ``ranks`` are by layer, ``budget`` what both may cost in ``unit``: ``MB`` on disk, or ``ms`` that they add to one run of
    ``target``'s smallest shape; ``chosen_cost`` and ``uniform_cost`` are what they do cost. ``change`` is the chosen ones' score
    minus the uniform ones' on the same validation rows, with its 95 % interval; ``kept`` is the one whose adapter was written.
    ``map`` are the rows of the map as text.
    """

    ranks: dict[str, int]
    uniform_rank: int
    uniform_targets: tuple[str, ...]
    budget: float
    unit: str
    target: str
    chosen_cost: float
    uniform_cost: float
    metric: str
    chosen: Interval
    uniform: Interval
    change: Interval
    kept: str
    map: tuple[tuple[str, ...], ...]
    adapter: TrainedAdapter

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def train_with_chosen_ranks(
    model: str | Path,
    data: Rows | Sequence[Rows],
    out: str | Path,
    *,
    mix_temperature: float = 1.0,
    budget_mb: float | None = None,
    budget_ms: float | None = None,
    target: Target | None = None,
    measure: Measure = "gradient",
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
    problem_type: ProblemType = "single_label_classification",
    validation: Rows | Sequence[Rows] | None = None,
    validation_fraction: float = 0.1,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] | None = None,
    use_dora: bool = False,
    use_rslora: bool = False,
    epochs: int = 3,
    learning_rate: float | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    patience: int | None = 2,
    seed: int = 0,
    threads: int | None = None,
    gradient_checkpointing: bool = False,
    announce: Callable[[str], None] = lambda message: None,
) -> RankChoice:
    """Train LoRA with ranks where they are worth most, and with uniform ranks of the same cost; write the better.

    Args:
        model: The base: a folder or a Hugging Face id.
        data: As for :func:`.train_adapter`.
        out: The adapter's folder.
        mix_temperature: How several sources are mixed, as for :func:`.train_adapter`.
        budget_mb: What the adapter's matrices may take on disk (MB, 10^6 bytes); by default what ``rank`` at
            ``target_modules`` takes.
        budget_ms: In its place, the milliseconds that the adapter may add to one run of ``target``'s smallest shape.
        target: What the milliseconds are of; this machine must be of its kind, for they are measured
            (:func:`.measure_rank_costs`).
        measure: How a layer's worth is told: ``gradient``, ``fisher``, ``taylor`` or ``eva``.
        text: The column of texts.
        label: The column of labels.
        pair: The column of second texts.
        problem_type: What the labels are.
        validation: Rows to measure on.
        validation_fraction: The share that is held out where there are none.
        rank: Of the uniform adapter, where ``budget_mb`` is not given.
        alpha: LoRA's alpha at ``rank``; the scaling is the same at every rank.
        dropout: LoRA's dropout.
        target_modules: Of the uniform adapter; by default the attention projections that PEFT knows for the architecture.
        use_dora: Train DoRA.
        use_rslora: Scale by ``alpha / sqrt(rank)``.
        epochs: The most passes over the data.
        learning_rate: Of both.
        batch_size: Rows in a step.
        max_length: Tokens of a row.
        patience: Epochs without a better score.
        seed: Of the initial weights and the order of rows.
        threads: PyTorch's threads.
        gradient_checkpointing: Let layers compute their activations again in the backward pass: less memory, more time.
        announce: Is called with a line of text for each run.

    Returns:
        The ranks, both scores, their difference, and the adapter that was written.

    Raises:
        InputError: The budget is below one rank, an option is wrong, or the target cannot be measured here.
    """
    arguments = arguments_of({name: value for name, value in locals().items() if name not in {"announce", "target"}})
    arguments["target"] = None if target is None else target.name
    folder = Path(out)
    check_arguments(
        folder,
        arguments,
        ("rank", "epochs", "batch_size", "alpha", "learning_rate", "max_length", "patience", "budget_mb", "budget_ms"),
    )
    from .allocation import allocate, byte_costs, is_target, uniform_cost, uniform_rank
    from .rank_cost import check_measurable, measure_rank_costs
    from .sensitivity import MEASURES, measure_sites
    from .sensitivity_map import drawn_map, map_record

    if measure not in MEASURES:
        raise InputError(f"a layer's worth is told by {', '.join(MEASURES)}, not by {measure!r}")
    if budget_ms is not None and budget_mb is not None:
        raise InputError(
            "--rank-budget-mb and --rank-budget-ms are two budgets, and ranks are given within one; leave one out"
        )
    if (budget_ms is None) != (target is None):
        raise InputError(
            "--rank-budget-ms needs the --target whose milliseconds they are, and --target is for that budget alone"
        )
    if target is not None:
        check_measurable(target)
    check_alone("train --modules auto")
    check_extra()
    split = load_split(
        data,
        validation=validation,
        fraction=validation_fraction,
        text=text,
        label=label,
        pair=pair,
        seed=seed,
        problem_type=problem_type,
        temperature=mix_temperature,
    )
    from .base import resolve_targets
    from .trainer import seeded
    from .workbench import open_workbench

    with seeded(seed, threads):
        bench = open_workbench(model, split, max_length)
    announce("looking which layers matter")
    sites = measure_sites(bench, batch_size=batch_size, seed=seed, threads=threads)
    resolved = resolve_targets(bench.base, target_modules)
    targets = tuple(site.name for site in sites) if isinstance(resolved, str) else tuple(resolved)
    if not any(is_target(site.name, targets) for site in sites):
        raise InputError(f"none of {', '.join(targets)} is a linear layer of {bench.base.source} below its head")
    if budget_ms is None or target is None:
        unit, costs = "MB", byte_costs(sites)
        budget = uniform_cost(sites, targets, rank, costs) if budget_mb is None else budget_mb * 1e6
    else:
        announce(f"measuring what ranks cost on {target.name}")
        measured = measure_rank_costs(((s.inputs_width, s.outputs_width) for s in sites), target, gain=use_dora)
        costs = {site.name: measured[site.inputs_width, site.outputs_width] for site in sites}
        unit, budget = "ms", budget_ms
    widest = min(min(s.inputs_width, s.outputs_width) for s in sites if is_target(s.name, targets))
    even = min(widest, uniform_rank(sites, targets, budget, costs))  # beyond its width a layer has no more ranks
    if even < 1:
        least = uniform_cost(sites, targets, 1, costs)
        raise InputError(
            f"a rank budget of {_said(budget, unit)} is below rank 1 at {', '.join(targets)} ({_said(least, unit)})"
        )
    ranks = allocate(sites, budget, costs, measure=measure, unit="ms" if unit == "ms" else "bytes")
    flags = {"use_dora": use_dora, "use_rslora": use_rslora}
    uniform_settings = replace(
        settings_of("lora", even, alpha * even / rank, dropout, target_modules, flags, None, learning_rate),
        ranks=tuple((site.name, even) for site in sites if is_target(site.name, targets)),
    )
    chosen_settings = replace(uniform_settings, rank=rank, alpha=alpha, ranks=tuple(ranks.items()))
    schedule = Schedule(
        epochs, uniform_settings.rate, batch_size, seed, patience, threads, checkpointing=gradient_checkpointing
    )
    runs = {}
    for name, settings in (("uniform", uniform_settings), ("chosen", chosen_settings)):
        announce(f"training with {name} ranks: {settings.describe()}")
        runs[name] = bench.trained(settings, schedule)
    metric = bench.problem.row_metric
    change = paired_change(runs["uniform"][1].row_after, runs["chosen"][1].row_after, metric)
    kept = _better(runs["uniform"][1], runs["chosen"][1], metric)
    adapted, course, seconds = runs[kept]
    arguments["chosen_ranks"] = ranks if kept == "chosen" else {}
    return RankChoice(
        ranks=ranks,
        uniform_rank=even,
        uniform_targets=targets,
        budget=_in(budget, unit),
        unit=unit,
        target="" if target is None else target.name,
        chosen_cost=_in(sum(costs[name].of(mine) for name, mine in ranks.items()), unit),
        uniform_cost=_in(uniform_cost(sites, targets, even, costs), unit),
        metric=metric,
        chosen=score_interval(runs["chosen"][1].row_after, metric),
        uniform=score_interval(runs["uniform"][1].row_after, metric),
        change=change,
        kept=kept,
        map=drawn_map(sites, ranks, costs, measure),
        adapter=finish(
            bench,
            adapted,
            course,
            folder,
            arguments,
            seconds,
            extra={
                "sensitivity": map_record(
                    sites,
                    ranks,
                    costs,
                    measure,
                    budget=budget,
                    unit="ms" if unit == "ms" else "byte",
                    target=None if target is None else target.name,
                    kept=kept,
                )
            },
        ),
    )


def _better(uniform: Course, chosen: Course, metric: str) -> str:
    """By score; where scores are equal by loss."""
    sign = -1 if metric == "mean_error" else 1
    scores = [(sign * float(course.row_after.mean()), -course.after.loss) for course in (uniform, chosen)]
    return "chosen" if scores[1] > scores[0] else "uniform"


def _in(cost: float, unit: str) -> float:
    """A cost in bytes or milliseconds in the unit that is told."""
    return cost / 1e6 if unit == "MB" else cost


def _said(cost: float, unit: str) -> str:
    return f"{_in(cost, unit):.4g} {unit}"
