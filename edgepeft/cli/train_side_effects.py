"""What else a training did, as a table: whether confidence can be believed, and what was forgotten in other domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .show import table
from .train_sources import changed

if TYPE_CHECKING:
    from ..metrics.intervals import Interval
    from ..train.adapter_result import General
    from ..train.calibration import Calibration
    from ..train.gain import Gain
    from ..train.language_result import LanguageGeneral


def say_side_effects(calibration: Calibration | None, general: General | LanguageGeneral | None) -> None:
    """Print calibration error, Brier score and the score on rows of other domains, before and after, where they were measured."""
    rows: list[tuple[str, int, float, float, Interval | Gain]] = []
    if calibration is not None:
        for what, before, after, moved in (
            ("calibration error", calibration.error_before, calibration.error_after, calibration.error_change),
            ("Brier score", calibration.brier_before, calibration.brier_after, calibration.brier_change),
        ):
            rows.append((what, calibration.rows, before, after, moved))
    if general is not None:
        gain = general.gain
        name = "perplexity" if gain.metric == "nats a token" else gain.metric
        unit = " (change in nats a token)" if name == "perplexity" else ""
        before, after = (getattr(each, name) for each in (general.before, general.after))
        rows.append((f"{name.replace('_', ' ')} on {general.source}{unit}", general.rows, before, after, gain))
    if not rows:
        return
    table(
        "Confidence, and other domains",
        ("what", "rows", "before", "after", "change [95 %]"),
        [
            (
                what,
                str(count),
                f"{before:.3f}",
                f"{after:.3f}",
                changed(moved),
            )
            for what, count, before, after, moved in rows
        ],
    )
    if general is not None:
        click.echo(general)
    if calibration is not None:
        click.echo(
            f"logits over {calibration.temperature:.2f} have a calibration error of {calibration.error_mended:.3f} "
            "(temperature scaling, found on one half of the rows and judged on the other)"
        )
