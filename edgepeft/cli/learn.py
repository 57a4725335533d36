"""Commands that train: train, demo."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from .common import (
    Command,
    guarded,
    json_option,
    label_option,
    option,
    pair_option,
    path_option,
    print_json,
    text_option,
)
from .show import steps, table, warn


@click.command(cls=Command)
@option("--model", section="What", required=True, metavar="MODEL", help="The base: a folder or a Hugging Face id.")
@path_option(
    "--out", section="What", required=True, help="The adapter folder to write; an old adapter there is replaced."
)
@option(
    "--data",
    section="Data",
    required=True,
    metavar="FILE",
    help="Training rows: a .csv, .tsv or .jsonl file, or a datasets id.",
)
@option(
    "--validation", section="Data", metavar="FILE", show_default="split off --data", help="Validation rows, likewise."
)
@text_option
@label_option
@pair_option
@option("--rank", section="Adapter", default=8, metavar="N", help="LoRA rank.")
@option("--alpha", section="Adapter", default=16.0, metavar="X", help="LoRA alpha; the scaling is alpha / rank.")
@option("--dropout", section="Adapter", default=0.0, metavar="P", help="LoRA dropout.")
@option(
    "--target-modules",
    section="Adapter",
    metavar="NAMES",
    show_default="attention projections",
    help="Comma-separated module names, or all-linear.",
)
@option("--dora", section="Adapter", is_flag=True, help="DoRA: train the magnitude too.")
@option("--rslora", section="Adapter", is_flag=True, help="Scale by alpha / sqrt(rank).")
@option("--epochs", section="Training", default=3, metavar="N", help="Epochs at most.")
@option("--patience", section="Training", default=2, metavar="N", help="Epochs without a better score before it stops.")
@option("--learning-rate", section="Training", default=1e-3, metavar="X", help="Peak learning rate.")
@option("--batch-size", section="Training", default=16, metavar="N", help="Rows a step.")
@option(
    "--max-length",
    section="Training",
    type=int,
    metavar="N",
    show_default="128, or the model's limit",
    help="Tokens a row is cut to.",
)
@option("--seed", section="Training", default=0, metavar="N", help="Seed of everything that is drawn.")
@json_option
@guarded
def train(
    model: str,
    data: str,
    out: Path,
    validation: str | None,
    text: str,
    label: str,
    pair: str | None,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: str | None,
    dora: bool,
    rslora: bool,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    max_length: int | None,
    patience: int,
    seed: int,
    as_json: bool,
) -> None:
    """Fine-tune a LoRA adapter for text classification.

    Writes a PEFT checkpoint with its labels, metrics and base identity beside it.
    """
    from ..train import train_adapter

    modules = (
        target_modules if target_modules in (None, "all-linear") else [m.strip() for m in target_modules.split(",")]
    )
    result = train_adapter(
        model,
        data,
        out,
        text=text,
        label=label,
        pair=pair,
        validation=validation,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        target_modules=modules,
        use_dora=dora,
        use_rslora=rslora,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        patience=patience,
        seed=seed,
        progress=False if as_json else None,
    )
    if result.truncated_rows:
        warn(f"{result.truncated_rows} rows were cut to the longest input; see --max-length")
    if as_json:
        print_json(asdict(result))
        return
    click.echo(
        f"{result.folder}: accuracy {result.before.accuracy:.3f} -> {result.after.accuracy:.3f} on "
        f"{result.validation_rows} validation rows (epoch {result.best_epoch} of {result.epochs}), "
        f"{result.trainable_parameters:,} of {result.total_parameters:,} parameters trained in {result.seconds:.0f} s"
    )


@click.command(cls=Command)
@path_option("--out", default="demo-out", help="The folder for what the demo makes.")
@click.option("--fresh", is_flag=True, help="Train and export again, even where --out has the results.")
@json_option
@guarded
def demo(out: Path, fresh: bool, as_json: bool) -> None:
    """Show all of it on three real adapters.

    Trains three LoRA adapters over one MiniLM, exports one bundle, swaps, quantizes, validates and measures it. Fetches the
    pinned model and data once (into EDGEPEFT_CACHE, ~/.cache/edgepeft by default). Exit code 0: every check passed; 1: one
    failed; 3: a measurement cannot tell.
    """
    from ..demo.run import run_demo

    with steps() as announce:
        result = run_demo(out, fresh=fresh, announce=announce)
    if as_json:
        print_json(result.as_dict())
    else:
        for drawn in result.tables:
            table(drawn.title, drawn.columns, drawn.rows)
        for line in result.lines:
            click.echo(line)
    sys.exit(result.verdict.exit_code)
