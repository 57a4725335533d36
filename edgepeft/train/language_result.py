"""A trained language model's adapter, and the record that is written beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .deployed import Deployed
from .gain import Gain, Verdict, likelihood_gain
from .perplexity import Change, Losses, Perplexity, change, summarize
from .record import FORMAT, versions
from .source_scores import SourceScore
from .start import StartedFrom

if TYPE_CHECKING:
    from .lm_loop import LanguageCourse


@dataclass(frozen=True)
class TrainedLanguageAdapter:
    """A trained adapter on disk.

    ``folder`` holds ``adapter_model.safetensors``, ``adapter_config.json`` and ``edgepeft_adapter.json``, and the chat
    template where one was given. ``layout`` is how rows became text: ``chat`` (through the chat template), ``plain``
    (prompt and completion as they stand) or ``text``, whose rows are the pieces that the texts were cut into. ``before``
    and ``after`` are perplexities on the validation rows, ``change`` their paired difference. ``train_tokens`` counts
    what was learnt in all steps, repeats included, ``validation_tokens`` what is measured, ``cut_rows`` rows shortened
    to the limit, ``skipped_rows`` rows left out because their prompt alone fills it. ``seconds`` is the time spent in
    the training loop, both measurements included. ``sources`` tells of each, where there are several,
    ``general`` of rows of other domains.
    """

    folder: Path
    task: str
    layout: Literal["chat", "plain", "text"]
    base_model: str
    base_identity: str
    before: Perplexity
    after: Perplexity
    change: Change
    seconds: float
    epochs: int
    best_epoch: int
    steps: int
    train_rows: int
    train_tokens: int
    validation_rows: int
    validation_tokens: int
    cut_rows: int
    skipped_rows: int
    trainable_parameters: int
    total_parameters: int
    verdict: Verdict = "no difference shown"
    warnings: tuple[str, ...] = ()
    start: StartedFrom | None = None
    deployed: Deployed | None = None
    sources: tuple[SourceScore, ...] = ()
    general: LanguageGeneral | None = None


@dataclass(frozen=True)
class LanguageGeneral:
    """What a training did in other domains: perplexities before and after on the same tokens, and the change with its interval."""

    source: str
    rows: int
    before: Perplexity
    after: Perplexity
    gain: Gain

    @classmethod
    def of(cls, source: str, rows: int, before: Losses, after: Losses) -> LanguageGeneral:
        """From the losses of ``rows`` sequences."""
        moved = change(before, after)
        gain = likelihood_gain(moved.nll, moved.standard_error)
        return cls(source, rows, summarize(before), summarize(after), gain)

    def __str__(self) -> str:
        """As a warning says it."""
        return f"on {self.after.tokens:,} tokens of {self.source}: {self.gain}"


def language_record(
    result: TrainedLanguageAdapter, course: LanguageCourse, length: int, arguments: dict[str, Any]
) -> dict[str, Any]:
    """What ``edgepeft_adapter.json`` says of a training; ``length`` is the most tokens of a sequence."""
    return {
        "format": FORMAT,
        "task": result.task,
        "layout": result.layout,
        "base_identity": result.base_identity,
        "base_model": result.base_model,
        "start": None if result.start is None else asdict(result.start),
        "deployed": None if result.deployed is None else asdict(result.deployed),
        "sources": [asdict(each) for each in result.sources],
        "general": None if result.general is None else asdict(result.general),
        "metrics": {
            "before": asdict(result.before),
            "after": asdict(result.after),
            "change": asdict(result.change),
            "verdict": result.verdict,
            "warnings": list(result.warnings),
            "train_loss": list(course.train_loss),
            "step_loss": [round(loss, 6) for loss in course.step_loss],
            "epoch_scores": [asdict(score) for score in course.scores],
            "epochs": result.epochs,
            "best_epoch": result.best_epoch,
            "steps": result.steps,
            "seconds": round(result.seconds, 3),
            "train_rows": result.train_rows,
            "train_tokens": result.train_tokens,
            "validation_rows": result.validation_rows,
            "validation_tokens": result.validation_tokens,
            "cut_rows": result.cut_rows,
            "skipped_rows": result.skipped_rows,
        },
        "max_length": length,
        "trainable_parameters": result.trainable_parameters,
        "total_parameters": result.total_parameters,
        "arguments": arguments,
        "versions": versions(),
    }
