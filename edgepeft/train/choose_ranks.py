"""``--modules auto``: ranks where a sensitivity map says, against uniform ranks of as many bytes, and the better kept."""

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
    from .sensitivity import Measure


@dataclass(frozen=True)
class RankChoice:
    """Chosen ranks against uniform ones of as many bytes.

    ``ranks`` are by layer, ``budget_mb`` what both may take on disk; ``change`` is the chosen ones' score minus the uniform
    ones' on the same validation rows, with its 95 % interval; ``kept`` is the one whose adapter was written. ``map`` are the
    rows of the map as text.
    """

    ranks: dict[str, int]
    uniform_rank: int
    uniform_targets: tuple[str, ...]
    budget_mb: float
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
    """Train LoRA with ranks where they are worth most, and with uniform ranks of as many bytes; write the better.

    Args:
        model: The base: a folder or a Hugging Face id.
        data: As for :func:`.train_adapter`.
        out: The adapter's folder.
        mix_temperature: How several sources are mixed, as for :func:`.train_adapter`.
        budget_mb: What the adapter's matrices may take on disk (MB, 10^6 bytes); by default what ``rank`` at
            ``target_modules`` takes.
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
        InputError: The budget is below one rank, or an option is wrong.
    """
    arguments = arguments_of({name: value for name, value in locals().items() if name != "announce"})
    folder = Path(out)
    check_arguments(
        folder,
        arguments,
        ("rank", "epochs", "batch_size", "alpha", "learning_rate", "max_length", "patience", "budget_mb"),
    )
    from .sensitivity import MEASURES, allocate, drawn_map, is_target, map_record, measure_sites, uniform_bytes

    if measure not in MEASURES:
        raise InputError(f"a layer's worth is told by {', '.join(MEASURES)}, not by {measure!r}")
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
    one = uniform_bytes(sites, targets, 1)
    if not one:
        raise InputError(f"none of {', '.join(targets)} is a linear layer of {bench.base.source} below its head")
    budget = rank * one if budget_mb is None else int(budget_mb * 1e6)
    uniform_rank = budget // one
    if uniform_rank < 1:
        raise InputError(
            f"a rank budget of {budget / 1e6:g} MB is below rank 1 at {', '.join(targets)} ({one / 1e6:.3f} MB)"
        )
    ranks = allocate(sites, budget, measure=measure)
    flags = {"use_dora": use_dora, "use_rslora": use_rslora}
    uniform_settings = replace(
        settings_of(
            "lora", uniform_rank, alpha * uniform_rank / rank, dropout, target_modules, flags, None, learning_rate
        ),
        ranks=tuple((site.name, uniform_rank) for site in sites if is_target(site.name, targets)),
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
        uniform_rank=uniform_rank,
        uniform_targets=targets,
        budget_mb=budget / 1e6,
        metric=metric,
        chosen=score_interval(runs["chosen"][1].row_after, metric),
        uniform=score_interval(runs["uniform"][1].row_after, metric),
        change=change,
        kept=kept,
        map=drawn_map(sites, ranks, measure),
        adapter=finish(
            bench,
            adapted,
            course,
            folder,
            arguments,
            seconds,
            extra={"sensitivity": map_record(sites, ranks, measure, budget, kept)},
        ),
    )


def _better(uniform: Course, chosen: Course, metric: str) -> str:
    """By score; where scores are equal by loss."""
    sign = -1 if metric == "mean_error" else 1
    scores = [(sign * float(course.row_after.mean()), -course.after.loss) for course in (uniform, chosen)]
    return "chosen" if scores[1] > scores[0] else "uniform"
