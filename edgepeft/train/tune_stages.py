"""What ``edgepeft tune`` tries, stage by stage: frozen features, few labels, learning rates, places, ranks, methods."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ..errors import InputError, MissingExtraError
from .expected_gain import ExpectedGain
from .methods import Settings
from .tune_search import Search

if TYPE_CHECKING:
    from .trials import Candidate
    from .workbench import Workbench

_Value = TypeVar("_Value")

#: Penalties of logistic regression (its C) on frozen features: the fewer rows, the stronger the penalty that does best.
_PENALTIES = (0.003, 0.01, 0.1)
#: From so many labels a class on: the least steps of contrast on a fold (a third more on all rows), and their share of LoRA's rate.
#: Few texts are learnt by heart at the whole rate; more of them gain from it, and need fewer steps (docs/training.md).
_CONTRAST = {0: (40, 1 / 6), 32: (12, 1.0)}
#: Many rows are seen so often, up to so many steps.
_CONTRAST_EPOCHS, _MOST_CONTRAST = 2, 200
#: Up to so many labels a class judgements are few.
FEW_LABELS = 64
#: The penalty of the head that is solved for after contrast.
FEW_STRENGTH = 0.01
#: What contrast gained over a head on frozen features on MiniLM and four sources, from so many labels a class on (few_labels.py).
_GAINED = {
    0: ExpectedGain(0.015, 0.06),
    8: ExpectedGain(0.05, 0.06),
    16: ExpectedGain(0.055, 0.025),
    32: ExpectedGain(0.075, 0.035),
    FEW_LABELS + 1: ExpectedGain(0.075, 0.06),
}
#: What it gained over the fine-tuning that a search found where labels are many (docs/training.md); where they are few, what is
#: tried later has to overcome all of the above.
_GAINED_LATER = ExpectedGain(0.03, 0.02)


def _from_labels(table: dict[int, _Value], labels: int) -> _Value:
    """What a table that says "from so many labels a class on" has for ``labels``."""
    return table[max(count for count in table if count <= labels)]


def evenly_attending(site: str) -> Settings:
    """The least that starts from even attention: DoRA at the one projection of keys, which is not trained."""
    return Settings("dora", rank=1, ranks=((site, 1),))


def taught_by_contrast(site: str | None, width: int, labels: int, rows: int) -> tuple[Candidate, int]:
    """Every linear layer taught by contrast, and its steps on a fold of ``rows``: DoRA from even attention at ``site``, or LoRA.

    LoRA's rate, of which few labels get a share, is that of Schulman et al., *LoRA Without Regret* (2025), for a network of hidden
    size ``width``: ten times that of all weights, 5e-5, times ``(2000 / width) ** 0.781``; 1.8e-3 for 384.
    """
    from .contrast import CONTRAST_BATCH
    from .trials import Candidate

    least, share = _from_labels(_CONTRAST, labels)
    rate = float(f"{share * 5e-4 * (2000 / width) ** 0.781:.2g}")
    settings = Settings("lora" if site is None else "dora", rank=8, targets="all-linear", learning_rate=rate)
    steps = max(least, min(_MOST_CONTRAST, _CONTRAST_EPOCHS * rows // CONTRAST_BATCH))
    return Candidate(settings, "contrast", FEW_STRENGTH, site), steps


def frozen_stage(search: Search, site: str | None, few: bool) -> list[str]:
    """Heads on frozen features, the base's own and those under even attention; what to say where they cannot be had."""
    from .trials import Candidate

    said = []
    starts: list[tuple[Settings, str | None]] = [(Settings("head-only"), None)]
    if site is not None:
        starts.insert(0, (evenly_attending(site), site))
    for settings, even in starts:
        penalties = _PENALTIES if few else _PENALTIES[1:]
        try:
            search.stage("frozen features", [Candidate(settings, "features", c, even) for c in penalties])
        except (MissingExtraError, InputError) as error:
            under = " under even attention" if even else ""
            said.append(f"a head on frozen features{under} was not tried: {error}")
    return said


def contrast_stage(search: Search, site: str | None, labels: int) -> list[str]:
    """Every linear layer taught by contrast, from even attention where there is ``site``; what to say where it cannot be.

    ``labels`` are the rows of the rarest label, by which contrast gains more or less.
    """
    expected = _from_labels(_GAINED, labels)
    later = expected if labels <= FEW_LABELS else _GAINED_LATER
    rows = len(search.folds[0][0])
    try:
        search.prefer(
            "contrast",
            *taught_by_contrast(site, search.bench.width, labels, rows),
            expected,
            later,
        )
    except (MissingExtraError, InputError) as error:
        return [f"contrast was not tried: {error}"]
    return []


def wider_stages(search: Search, bench: Workbench, lora: Settings, rate: float, site: str | None) -> None:
    """The learning rate around that of the range test, then where, the rank, and other methods and starts."""
    from .trials import Candidate

    # Hundreds of steps want a lower rate than the test's few; of those that are alike the first wins.
    rates = (rate / 9, rate / 3, rate)
    search.stage("learning rate", [Candidate(replace(lora, learning_rate=each)) for each in rates])
    tuned = _best_rate(search, replace(lora, learning_rate=rates[0]))
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
    if site is not None and even is None:
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


def _best_rate(search: Search, default: Settings) -> Settings:
    """The best fine-tuning so far among those with the most steps, whether or not it beats a head on frozen features."""
    tried = [trial for trial in search.trials if trial.candidate.kind == "fine-tune" and trial.candidate.even is None]
    if not tried:
        return default
    most = max(trial.steps for trial in tried)
    return max((trial for trial in tried if trial.steps == most), key=lambda trial: trial.key).candidate.settings


def _going_on(search: Search, base: Settings) -> Settings:
    """The settings that later stages vary: those of the best trial that has any."""
    if search.best is None or search.best.candidate.kind == "features":
        return base
    return search.best.candidate.settings
