"""Is the task too much for an adapter? Learning curves over data and over rank, against full fine-tuning and a head alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..metrics.intervals import Interval
from .device import enough_memory
from .folds import make_folds
from .leaks import row_keys
from .methods import FULL, HEAD_ONLY, Settings
from .processes import check_alone
from .record import check_extra
from .source import Rows, load_rows
from .trials import Candidate, Trial, bootstrap, run_trial

if TYPE_CHECKING:
    from .workbench import Workbench

#: What is found: nothing is learnt; a head alone is as good; an adapter is as good as all weights; a larger rank, more data or all
#: weights would be better.
Finding = Literal[
    "hopeless", "a head suffices", "an adapter suffices", "more rank", "more data", "full fine-tuning wins"
]

_SHARES = (0.25, 0.5)
_RANKS = (2, 32)
_RANK = 8
_LEAST_STEPS, _MOST_STEPS, _EPOCHS = 60, 600, 4


@dataclass(frozen=True)
class Evidence:
    """One trained setting: ``accuracy`` out of fold, and ``change`` from LoRA of rank 8 on all rows, with 95 % intervals."""

    what: str
    accuracy: Interval
    change: Interval | None
    steps: int
    seconds: float


@dataclass(frozen=True)
class Complexity:
    """What was found, in a sentence, and the evidence.

    ``data_slope`` is the accuracy with all rows minus that with half of them, ``majority`` the share of the most frequent label.
    """

    finding: Finding
    sentence: str
    evidence: tuple[Evidence, ...]
    majority: float
    data_slope: Interval
    judged_rows: int


def judge_complexity(
    model: str | Path,
    data: Rows | Sequence[Rows],
    *,
    mix_temperature: float = 1.0,
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
    learning_rate: float = 1e-3,
    batch_size: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Complexity:
    """Train on a quarter, half and all of the rows, at three ranks, all weights and a head alone, all on the same folds.

    LoRA is at every linear layer.

    Args:
        model: The base: a folder or a Hugging Face id.
        data: Labelled rows; all are used, and judged out of fold.
        mix_temperature: How several sources are mixed, as for :func:`.train_adapter`.
        text: The column of texts.
        label: The column of labels.
        pair: The column of second texts.
        learning_rate: Of LoRA; all weights take a tenth of it, a head alone ten times.
        batch_size: Rows in a step.
        max_length: Tokens of a row.
        seed: Of folds, initial weights and orders.
        threads: PyTorch's threads.
        announce: Is called with a line of text for each setting.

    Returns:
        What was found, with its evidence.

    Raises:
        DataError: There is one label only, or fewer than four distinct rows of one.
    """
    check_alone("train --verdict")
    check_extra()
    split = load_rows(data, None, text=text, label=label, pair=pair, temperature=mix_temperature)
    from .trainer import seeded
    from .workbench import open_workbench

    with seeded(seed, threads):
        bench = open_workbench(model, split, max_length)
    folds = make_folds([(row.target, row.source) for row in bench.rows], seed, row_keys(bench.split.train))
    steps = max(_LEAST_STEPS, min(_MOST_STEPS, _EPOCHS * -(-len(folds[0][0]) // batch_size)))
    # At every linear layer: at query and value alone it is places that lack, and a verdict would blame the rank or the method.
    lora = Settings("lora", rank=_RANK, targets="all-linear", learning_rate=learning_rate)

    def look(what: str, settings: Settings, share: float = 1.0) -> Trial:
        mine = [(_share_of(bench, train, share, seed), held) for train, held in folds]
        with enough_memory(f"--batch-size ({batch_size}) or --max-length"):
            found = run_trial(
                bench,
                Candidate(settings),
                mine,
                stage=what,
                steps=max(_LEAST_STEPS, round(steps * share)),
                batch_size=batch_size,
                seed=seed,
                threads=threads,
            )
        announce(f"{what}: accuracy {found.accuracy:.3f} in {found.seconds:.0f} s")
        return found

    began = time.perf_counter()
    reference = look(f"lora r={_RANK}, all rows", lora)
    parts = [look(f"lora r={_RANK}, {share:.0%} of the rows", lora, share) for share in _SHARES]
    ranks = [look(f"lora r={rank}, all rows", replace(lora, rank=rank)) for rank in _RANKS]
    full = look("full fine-tuning", Settings(FULL, learning_rate=learning_rate / 10))
    head = look("a head alone", Settings(HEAD_ONLY, learning_rate=learning_rate * 10))
    announce(f"{time.perf_counter() - began:.0f} s in all")
    trials = [*parts, reference, *ranks, full, head]
    places = sorted({place for _, held in folds for place in held})
    targets = np.array([bench.rows[place].target for place in places])
    majority = np.bincount(targets).max() / len(targets)
    finding, sentence = conclude(reference, parts[-1], ranks[-1], full, head, targets, narrow=ranks[0])
    return Complexity(
        finding=finding,
        sentence=sentence,
        evidence=tuple(
            Evidence(
                trial.stage,
                trial.interval,
                None if trial is reference else trial.minus(reference),
                trial.steps,
                trial.seconds,
            )
            for trial in trials
        ),
        majority=float(majority),
        data_slope=reference.minus(parts[-1]),
        judged_rows=len(places),
    )


def conclude(
    lora: Trial, half: Trial, wide: Trial, full: Trial, head: Trial, targets: np.ndarray, *, narrow: Trial | None = None
) -> tuple[Finding, str]:
    """What follows from LoRA on all rows and on half of them, a larger rank, all weights, a head alone, and a smaller rank.

    Only differences beyond their 95 % interval count. Looked for in this order: nothing beats the most frequent label; full
    fine-tuning is better than every rank; a larger rank is better; more rows still help; a head alone is as good.
    """
    common = (targets == np.bincount(targets).argmax()).astype(np.float64)
    ranked = [
        (lora, f"rank {_RANK}"),
        (wide, f"rank {_RANKS[-1]}"),
        *([(narrow, f"rank {_RANKS[0]}")] if narrow else []),
    ]
    gains = [bootstrap(trial.right - common) for trial in (*(trial for trial, _ in ranked), full, head)]
    if all(gain.lower <= 0 for gain in gains):
        best = max(gains, key=lambda gain: gain.estimate)
        return "hopeless", (
            f"nothing is shown to be learnt: the best setting is {_said(best)} against always giving the most frequent label. "
            "Look at the labels; the texts may not decide them, or far too few rows are there"
        )
    best_rank, name = max(ranked, key=lambda entry: entry[0].key)
    over = full.minus(best_rank)
    if over.lower > 0:
        return "full fine-tuning wins", (
            f"full fine-tuning wins by {_said(over)} over {name} at every linear layer: an adapter of this kind is not enough. "
            "Ship the model that was trained whole"
        )
    more = wide.minus(lora)
    if narrow is not None and best_rank is narrow and narrow.minus(lora).lower > 0:
        # At this rate the larger ranks learnt less, so what they did says nothing of rows and of a head.
        return "an adapter suffices", (
            f"rank {_RANKS[0]} suffices, and is better than rank {_RANK} by {_said(narrow.minus(lora))}: the learning rate is too "
            f"high for larger ranks. Full fine-tuning is not shown to add anything ({_said(over)})"
        )
    if more.lower > 0:
        return "more rank", f"a larger rank helps: rank {_RANKS[-1]} is better than rank {_RANK} by {_said(more)}"
    slope = lora.minus(half)
    if slope.lower > 0:
        return "more data", (
            f"more rows help: all of them are better than half of them by {_said(slope)}, and neither rank ({_said(more)}) nor all "
            f"weights ({_said(over)}) are shown to be"
        )
    gain = lora.minus(head)
    if gain.lower <= 0:
        return "a head suffices", (
            f"an adapter is not shown to be better than a head alone ({_said(gain)}), which is smaller and trains faster"
        )
    return "an adapter suffices", (
        f"rank {_RANK} suffices: better than a head alone by {_said(gain)}; neither a larger rank ({_said(more)}), full "
        f"fine-tuning ({_said(over)}) nor the second half of the rows ({_said(slope)}) is shown to add anything"
    )


def _said(change: Interval) -> str:
    return f"{change.estimate:+.3f} [{change.lower:+.3f}, {change.upper:+.3f}]"


def _share_of(bench: Workbench, train: Sequence[int], share: float, seed: int) -> list[int]:
    """A share of the training places, as many of each label as that, at least one."""
    if share >= 1:
        return list(train)
    generator = np.random.default_rng(seed)
    by_label: dict[int, list[int]] = {}
    for place in train:
        by_label.setdefault(bench.rows[place].target, []).append(place)
    return sorted(
        int(place)
        for mine in by_label.values()
        for place in generator.permutation(mine)[: max(1, round(share * len(mine)))]
    )
