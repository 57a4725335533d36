"""Methods side by side on the same rows: quality with intervals, what is trained, memory, time and file size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..bundle.heads import ProblemType
from ..errors import InputError
from ..metrics.intervals import Interval, percentile_interval, resampled_rows, wilson
from ..scratch import scratch_folder
from .adapter_result import TrainedAdapter, finish
from .gain import paired_change
from .loop import Course, Schedule
from .memory import with_memory_growth
from .methods import FULL, Settings, peft_type, shipping, trainable
from .processes import check_alone
from .record import arguments_of, check_arguments, check_extra
from .source import Rows, load_split

if TYPE_CHECKING:
    from .workbench import Workbench


@dataclass(frozen=True)
class MethodRow:
    """What a method did.

    ``score`` is accuracy (of numbers the mean error) on the validation rows with its 95 % interval; ``change`` the same minus that
    of the first method, paired. ``share`` is trained of all numbers, ``memory_mb`` the growth of resident memory in training (MB,
    10^6 bytes), ``file_mb`` the weights on disk; ``ships`` how it can be shipped, empty where it is no adapter.
    """

    method: str
    score: Interval
    change: Interval | None
    verdict: str
    trainable: int
    share: float
    memory_mb: float | None
    seconds_an_epoch: float
    file_mb: float
    ships: str
    learning_rate: float
    best_epoch: int
    stopped: str = ""


@dataclass(frozen=True)
class MethodComparison:
    """Methods side by side; ``chosen`` is the best that ships, by score and then by file size."""

    metric: str
    rows: tuple[MethodRow, ...]
    chosen: str
    validation_rows: int
    warnings: tuple[str, ...]
    adapter: TrainedAdapter | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_methods(
    model: str | Path,
    data: Rows | Sequence[Rows],
    methods: Sequence[str],
    out: str | Path | None = None,
    *,
    mix_temperature: float = 1.0,
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
    epochs: int = 3,
    learning_rate: float | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    patience: int | None = 2,
    seed: int = 0,
    threads: int | None = None,
    gradient_checkpointing: bool = False,
    announce: Callable[[str], None] = lambda message: None,
) -> MethodComparison:
    """Train each of ``methods`` on the same rows in the same order, and measure what it gives and what it takes.

    Args:
        model: The base: a folder or a Hugging Face id.
        data: As for :func:`.train_adapter`.
        methods: Methods of PEFT, ``"dora"``, ``"ln"``, ``"head-only"``, ``"full"``; the first is what others are compared with.
        out: Where the best adapter that ships is written; ``None`` for nowhere.
        mix_temperature: How several sources are mixed, as for :func:`.train_adapter`.
        text: The column of texts.
        label: The column of labels.
        pair: The column of second texts.
        problem_type: What the labels are.
        validation: Rows to measure on.
        validation_fraction: The share that is held out where there are none.
        rank: Of methods that have one.
        alpha: Of methods that have one.
        dropout: LoRA's.
        target_modules: Of methods that take them; by default every linear layer for LoRA and DoRA, and what others usually take.
        epochs: The most passes over the data.
        learning_rate: For all methods; by default each method's usual one, which the result names.
        batch_size: Rows in a step.
        max_length: Tokens of a row.
        patience: Epochs without a better score.
        seed: Of the initial weights and the order of rows.
        threads: PyTorch's threads.
        gradient_checkpointing: Let layers compute their activations again in the backward pass: less memory, more time.
        announce: Is called with a line of text for each method.

    Returns:
        A row a method, and which one was chosen.

    Raises:
        InputError: A method is unknown, or PEFT cannot make it over this network.

    Example:
        >>> found = compare_methods("org/model", "reviews.jsonl", ["lora", "ia3", "full"])
        >>> found.rows[1].change.estimate  # IA3's accuracy minus LoRA's
        -0.012
    """
    arguments = arguments_of({name: value for name, value in locals().items() if name != "announce"})
    folder = None if out is None else Path(out)
    positive = ("rank", "epochs", "batch_size", "alpha", "learning_rate", "max_length", "patience", "threads")
    check_arguments(folder, arguments, positive)
    if not methods or len(set(methods)) != len(methods):
        raise InputError(
            f"--compare takes methods, each once, such as lora,ia3,full; found {', '.join(methods) or 'none'}"
        )
    for method in methods:
        peft_type(method)
    check_alone("train --compare")
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
    from ..base.load import check_source

    check_source(str(model))
    from .trainer import seeded
    from .workbench import open_workbench

    with seeded(seed, threads):
        bench = open_workbench(model, split, max_length)
    targets = target_modules if target_modules is None or isinstance(target_modules, str) else tuple(target_modules)
    rows: list[MethodRow] = []
    first: npt.NDArray[np.float64] | None = None
    best: tuple[tuple[float, float], MethodRow, Any, Course, float] | None = None
    for method in methods:
        settings = Settings(
            method, rank, alpha, dropout, targets or _usual_targets(method), learning_rate=learning_rate
        )
        announce(f"{settings.describe()}")
        schedule = Schedule(
            epochs, settings.rate, batch_size, seed, patience, threads, checkpointing=gradient_checkpointing
        )
        model_of_method, course, seconds, growth = _run(bench, settings, schedule)
        row = _row(bench, settings, model_of_method, course, seconds, growth, first)
        first = course.row_after if first is None else first
        rows.append(row)
        sign = -1.0 if bench.problem.row_metric == "mean_error" else 1.0
        key = (sign * row.score.estimate, -row.file_mb)
        if row.ships and (best is None or key > best[0]):
            best = (key, row, model_of_method, course, seconds)
    written = None
    if folder is not None:
        if best is None:
            raise InputError(f"none of {', '.join(methods)} is an adapter that ships, so {folder} was not written")
        arguments["method"] = best[1].method
        arguments["target_modules"] = target_modules or _usual_targets(best[1].method)
        written = finish(bench, best[2], best[3], folder, arguments, best[4])
    return MethodComparison(
        metric=bench.problem.row_metric,
        rows=tuple(rows),
        chosen="" if best is None else best[1].method,
        validation_rows=len(bench.held),
        warnings=split.warnings if written is None else written.warnings,
        adapter=written,
    )


def _usual_targets(method: str) -> str | None:
    """LoRA's and its kin's every linear layer, where it is as good as full fine-tuning (docs/training.md); others' own."""
    return "all-linear" if peft_type(method) == "LORA" else None


def _run(bench: Workbench, settings: Settings, schedule: Schedule) -> tuple[Any, Course, float, int | None]:
    _warm_up(bench, settings, schedule)
    (model, course, seconds), growth = with_memory_growth(lambda: bench.trained(settings, schedule))
    if growth is not None:  # the copy of the base is there in deployment and before training too
        growth = max(0, growth - 4 * bench.base.parameters)
    return model, course, seconds, growth


def _warm_up(bench: Workbench, settings: Settings, schedule: Schedule) -> None:
    """Make one step and one evaluation on two rows, so that what libraries load when they are first used counts for no method."""
    from .steps import NotFiniteLossError, Run

    steps = schedule.epochs * -(-len(bench.rows) // schedule.batch_size)
    with Run(
        bench.fresh(settings, schedule.seed, steps=steps),
        bench.base.tokenizer,
        bench.rows[:2],
        batch_size=2,
        learning_rate=schedule.learning_rate,
        total_steps=steps,
        seed=schedule.seed,
        threads=schedule.threads,
        checkpointing=schedule.checkpointing,
    ) as run:
        run.keep_states()
        with suppress(NotFiniteLossError):  # the training itself will say so
            run.advance(1)
        run.evaluate(bench.held[:2] or bench.rows[:2])


def _row(
    bench: Workbench,
    settings: Settings,
    model: Any,
    course: Course,
    seconds: float,
    growth: int | None,
    first: npt.NDArray[np.float64] | None,
) -> MethodRow:
    metric = bench.problem.row_metric
    change = None if first is None else paired_change(first, course.row_after, metric)
    verdict = "reference"
    if change is not None:
        verdict = "no difference shown"
        if change.lower > 0 or change.upper < 0:
            verdict = "better" if (change.estimate > 0) == (metric == "accuracy") else "worse"
    count = trainable(model)
    return MethodRow(
        method=settings.method,
        score=score_interval(course.row_after, metric),
        change=change,
        verdict=verdict,
        trainable=count,
        share=count / bench.base.parameters,
        memory_mb=None if growth is None else growth / 1e6,
        seconds_an_epoch=seconds / max(1, len(course.train_loss)),
        file_mb=_file_bytes(bench, settings, model) / 1e6,
        ships=shipping(settings.method, "SEQ_CLS"),
        learning_rate=settings.rate,
        best_epoch=course.best_epoch,
        stopped=course.stopped,
    )


def score_interval(scores: npt.NDArray[np.float64], metric: str) -> Interval:
    """The mean of the scores of rows with its 95 % interval: Wilson's for right rows, else by the bootstrap."""
    if metric == "accuracy":
        return wilson(int(scores.sum()), len(scores))
    draws = np.array([scores[rows].mean() for rows in resampled_rows(len(scores))])
    return percentile_interval(float(scores.mean()), draws)


def _file_bytes(bench: Workbench, settings: Settings, model: Any) -> int:
    if peft_type(settings.method) == FULL:
        return 4 * bench.base.parameters
    with scratch_folder("compare") as scratch:
        model.save_pretrained(scratch, safe_serialization=True, save_embedding_layers=False)
        return sum(file.stat().st_size for file in Path(scratch).rglob("*.safetensors"))
