"""Several sources on the command line of ``train`` and ``tune``: what was given, and the scores of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .show import table

if TYPE_CHECKING:
    from ..metrics.intervals import Interval
    from ..train.gain import Gain
    from ..train.source_scores import SourceScore


def one_or_all(given: tuple[str, ...]) -> str | tuple[str, ...]:
    """A single source as the text that it is, so that records of one source stay as they were."""
    return given[0] if len(given) == 1 else given


def changed(change: Gain | Interval) -> str:
    """A change with its interval, which a single text or conversation has none of."""
    if not math.isfinite(change.lower) or not math.isfinite(change.upper):
        return f"{change.estimate:+.3f}"
    return f"{change.estimate:+.3f} [{change.lower:+.3f}, {change.upper:+.3f}]"


def say_sources(sources: Sequence[SourceScore]) -> None:
    """Print a line for each of several sources."""
    if not sources:
        return
    metric = sources[0].metric.replace("_", " ")
    table(
        "Sources, each on its own validation rows",
        ("source", "rows", "draws", "held out", f"{metric} before", "after", "change [95 %]"),
        [
            (
                each.source,
                str(each.train_rows),
                f"{100 * each.share:.1f} %",
                str(each.validation_rows),
                None if each.before is None else f"{each.before:.3f}",
                None if each.after is None else f"{each.after:.3f}",
                None if each.gain is None else changed(each.gain),
            )
            for each in sources
        ],
    )
