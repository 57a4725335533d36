"""What ``edgepeft train`` prints of a trained adapter, and how it ends."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .show import print_json, warn
from .train_side_effects import say_side_effects
from .train_sources import say_sources

if TYPE_CHECKING:
    from ..train import TrainedAdapter, TrainedLanguageAdapter


def _conclude(result: TrainedAdapter | TrainedLanguageAdapter) -> None:
    """Warn of what is wrong, and end with 1 where training made it worse than the base."""
    for warning in result.warnings:
        warn(warning)
    if result.verdict == "worse":
        sys.exit(1)


def _say_circumstances(result: TrainedAdapter | TrainedLanguageAdapter) -> None:
    if result.start is not None:
        click.echo(result.start)
    if result.deployed is not None:
        click.echo(result.deployed)


def say_classifier(result: TrainedAdapter, as_json: bool) -> None:
    """Print what a classifier's training came to, and end with 1 where it made things worse."""
    if result.truncated_rows:
        warn(f"{result.truncated_rows} rows were cut to the longest input; see --max-length")
    if as_json:
        print_json(asdict(result))
        _conclude(result)
        return
    _say_circumstances(result)
    if result.taught is not None:
        click.echo(result.taught)
    before, after = result.before, result.after
    what = (
        f"mean error {before.mean_error:.3f} -> {after.mean_error:.3f}, correlation {after.correlation:.3f}"
        if after.accuracy is None
        else f"accuracy {before.accuracy:.3f} -> {after.accuracy:.3f}"
    )
    click.echo(
        f"{result.folder}: {what} on "
        f"{result.validation_rows} validation rows (epoch {result.best_epoch} of {result.epochs}), "
        f"{result.trainable_parameters:,} of {result.total_parameters:,} parameters trained in {result.seconds:.0f} s"
    )
    if result.gain is not None:
        click.echo(f"change from the base: {result.gain}")
    say_sources(result.sources)
    say_side_effects(result.calibration, result.general)
    _conclude(result)


def say_language(result: TrainedLanguageAdapter, as_json: bool) -> None:
    """Print what a language model's training came to, and end with 1 where it made things worse."""
    if result.cut_rows:
        warn(f"{result.cut_rows} rows are longer than the limit and were cut, completions first; see --max-length")
    if result.skipped_rows:
        warn(f"{result.skipped_rows} rows were left out: their prompt alone fills the limit; see --max-length")
    if as_json:
        print_json(asdict(result))
        _conclude(result)
        return

    def shown(value: float, error: float | None, digits: int) -> str:
        return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")

    _say_circumstances(result)
    before, after, change = result.before, result.after, result.change
    click.echo(
        f"{result.folder}: perplexity {shown(before.perplexity, before.standard_error, 2)} -> "
        f"{shown(after.perplexity, after.standard_error, 2)} on {after.tokens:,} held-out tokens "
        f"({shown(change.nll, change.standard_error, 3)} nats a token; epoch {result.best_epoch} of {result.epochs}), "
        f"{result.trainable_parameters:,} parameters trained beside {result.total_parameters:,} on "
        f"{result.train_tokens:,} tokens in {result.seconds:.0f} s: {result.verdict}"
    )
    say_sources(result.sources)
    say_side_effects(None, result.general)
    _conclude(result)
