"""A trained classifier's adapter: judged, and written with its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.heads import ProblemType
from .batches import Row
from .calibration import Calibration, calibration_of
from .deployed import Deployed
from .gain import Gain, Verdict, gain_warning, majority_warning, paired_gain
from .loop import Course, Scores
from .methods import trainable
from .record import FORMAT, versions, write_checkpoint
from .source_scores import SourceScore, classifier_scores
from .start import StartedFrom
from .teacher import Taught

if TYPE_CHECKING:
    from .workbench import Workbench

TASK = "text-classification"


@dataclass(frozen=True)
class TrainedAdapter:
    """A trained adapter on disk.

    ``folder`` holds ``adapter_model.safetensors``, ``adapter_config.json`` and ``edgepeft_adapter.json``. ``before``
    and ``after`` are scores on the validation rows; ``seconds`` is the time spent in the training loop.

    ``gain`` is the change of accuracy (of numbers: of the mean error) on the same rows, with its interval; ``verdict`` calls it
    ``better`` or ``worse`` only beyond that. ``warnings`` say what is wrong with the data or the result. ``threads`` were taken
    in the end; ``cached_layers`` were run once a row, since nothing in them is trained. ``sources`` tells of each, where there are
    several; ``calibration`` whether confidence can be believed (one label a row; not where rows were judged out of fold).
    """

    folder: Path
    task: str
    labels: tuple[str, ...]
    base_model: str
    base_identity: str
    before: Scores
    after: Scores
    seconds: float
    epochs: int
    best_epoch: int
    train_rows: int
    validation_rows: int
    truncated_rows: int
    trainable_parameters: int
    total_parameters: int
    problem_type: ProblemType = "single_label_classification"
    gain: Gain | None = None
    verdict: Verdict = "no difference shown"
    warnings: tuple[str, ...] = ()
    threads: int = 1
    cached_layers: int = 0
    start: StartedFrom | None = None
    deployed: Deployed | None = None
    taught: Taught | None = None
    general: General | None = None
    sources: tuple[SourceScore, ...] = ()
    calibration: Calibration | None = None


@dataclass(frozen=True)
class General:
    """What a training did on rows of other domains: scores before and after, and the gain with its interval."""

    source: str
    rows: int
    before: Scores
    after: Scores
    gain: Gain

    def __str__(self) -> str:
        """As it is printed."""
        return f"on {self.rows} rows of {self.source}: {self.gain}"


def finish(
    bench: Workbench,
    adapted: Any,
    course: Course,
    out: Path,
    arguments: dict[str, Any],
    seconds: float,
    extra: Mapping[str, Any] | None = None,
    judged: Sequence[Row] | None = None,
    start: StartedFrom | None = None,
    deployed: Deployed | None = None,
    taught: Taught | None = None,
) -> TrainedAdapter:
    """Judge a training run and write its adapter; ``arguments`` and ``extra`` go into the record.

    ``judged`` are the rows that the course was judged on, where those are not the validation rows.
    """
    gain = paired_gain(course.row_before, course.row_after, bench.problem.row_metric)
    general = None
    if course.general is not None and bench.split.general is not None:
        before, after = course.general
        moved = paired_gain(before.rows, after.rows, bench.problem.row_metric)
        general = General(bench.split.general.source, len(after.rows), before.scores, after.scores, moved)
    said = [
        *bench.split.warnings,
        None if start is None else start.warning,
        course.stopped,
        gain_warning(gain, len(course.row_after)),
        f"training made it worse in other domains: {general}" if general and general.gain.verdict == "worse" else None,
    ]
    rows = bench.held if judged is None else judged
    if bench.problem.kind == "single_label_classification":
        right_answers = [bench.split.labels[row.target] for row in rows]
        said.append(majority_warning(course.row_after, bench.split.train.labels or (), right_answers))
    result = TrainedAdapter(
        folder=out,
        task=TASK,
        labels=bench.split.labels,
        base_model=bench.base.source,
        base_identity=bench.base.identity,
        before=course.before,
        after=course.after,
        seconds=seconds,
        epochs=len(course.train_loss),
        best_epoch=course.best_epoch,
        train_rows=len(bench.rows),
        validation_rows=len(course.row_after),
        truncated_rows=bench.cut,
        trainable_parameters=trainable(adapted),
        total_parameters=bench.base.parameters,
        problem_type=bench.problem.kind,
        gain=gain,
        verdict=gain.verdict,
        warnings=tuple(filter(None, said)),
        threads=course.threads,
        cached_layers=course.cached_layers,
        start=start,
        deployed=deployed,
        taught=taught,
        general=general,
        sources=classifier_scores(
            bench.split, [row.source for row in rows], course.row_before, course.row_after, bench.problem.row_metric
        ),
        calibration=_calibration(course, rows) if bench.problem.kind == "single_label_classification" else None,
    )
    write_checkpoint(adapted, out, {**_record(result, course, arguments), **(extra or {})})
    return result


def _calibration(course: Course, rows: Sequence[Row]) -> Calibration | None:
    if course.logits_before is None or course.logits_after is None:
        return None
    return calibration_of([row.target for row in rows], course.logits_before, course.logits_after)


def _record(result: TrainedAdapter, course: Course, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": result.task,
        "labels": list(result.labels),
        "problem_type": result.problem_type,
        "base_identity": result.base_identity,
        "base_model": result.base_model,
        "start": None if result.start is None else asdict(result.start),
        "deployed": None if result.deployed is None else asdict(result.deployed),
        "general": None if result.general is None else asdict(result.general),
        "sources": [asdict(each) for each in result.sources],
        "calibration": None if result.calibration is None else asdict(result.calibration),
        "taught": None if result.taught is None else asdict(result.taught),
        "metrics": {
            "before": asdict(result.before),
            "after": asdict(result.after),
            "gain": None if result.gain is None else asdict(result.gain),
            "verdict": result.verdict,
            "train_loss": list(course.train_loss),
            "step_loss": [round(loss, 6) for loss in course.step_loss],
            "epoch_scores": [asdict(scores) for scores in course.scores],
            "epochs": result.epochs,
            "best_epoch": result.best_epoch,
            "seconds": round(result.seconds, 3),
            "train_rows": result.train_rows,
            "validation_rows": result.validation_rows,
            "truncated_rows": result.truncated_rows,
            "threads": result.threads,
            "cached_layers": result.cached_layers,
            "warnings": list(result.warnings),
        },
        "trainable_parameters": result.trainable_parameters,
        "total_parameters": result.total_parameters,
        "arguments": arguments,
        "versions": versions(),
    }
