"""Commands that train: train, demo."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from .common import guarded, json_option, print_json, progress, table


@click.command()
@click.option("--model", required=True, help="The base: a folder or a Hugging Face id.")
@click.option("--data", required=True, help="Training rows: .csv, .tsv, .jsonl, or a datasets id.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The adapter folder to write.")
@click.option("--validation", help="Validation rows [default: split off --data].")
@click.option("--text", default="text", show_default=True, help="The column that holds the text.")
@click.option("--label", default="label", show_default=True, help="The column that holds the label.")
@click.option("--pair", help="The column that holds a second text.")
@click.option("--rank", default=8, show_default=True, help="LoRA rank.")
@click.option("--alpha", default=16.0, show_default=True, help="LoRA alpha; the scaling is alpha / rank.")
@click.option("--dropout", default=0.0, show_default=True, help="LoRA dropout.")
@click.option("--target-modules", help="Comma-separated module names, or all-linear [default: attention projections].")
@click.option("--dora", is_flag=True, help="DoRA: train the magnitude too.")
@click.option("--rslora", is_flag=True, help="Scale by alpha / sqrt(rank).")
@click.option("--epochs", default=3, show_default=True, help="Epochs at most.")
@click.option("--learning-rate", default=1e-3, show_default=True, help="Peak learning rate.")
@click.option("--batch-size", default=16, show_default=True, help="Rows a step.")
@click.option("--max-length", type=int, help="Tokens a row is cut to [default: 128, or the model's limit].")
@click.option("--patience", default=2, show_default=True, help="Epochs without improvement before training stops.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything that is drawn.")
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
    if as_json:
        print_json(asdict(result))
        return
    click.echo(
        f"{result.folder}: accuracy {result.before.accuracy:.3f} -> {result.after.accuracy:.3f} on {result.validation_rows} validation "
        f"rows (epoch {result.best_epoch} of {result.epochs}), {result.trainable_parameters:,} of {result.total_parameters:,} "
        f"parameters trained in {result.seconds:.0f} s"
    )


@click.command()
@click.option(
    "--out",
    default="demo-out",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for what the demo makes.",
)
@click.option("--fresh", is_flag=True, help="Train and export again, even where --out has the results.")
@json_option
@guarded
def demo(out: Path, fresh: bool, as_json: bool) -> None:
    """Train three adapters over one MiniLM, export, swap, quantize, validate and measure them.

    Fetches the pinned model and data once (into EDGEPEFT_CACHE, ~/.cache/edgepeft by default). Exit code 0: every check
    passed; 1: one failed; 3: a measurement cannot tell.
    """
    from ..demo.run import run_demo

    with progress(as_json) as announce:
        result = run_demo(out, fresh=fresh, announce=announce)
    if as_json:
        print_json(result.as_dict())
    else:
        for drawn in result.tables:
            table(drawn.title, drawn.columns, drawn.rows)
        for line in result.lines:
            click.echo(line)
    sys.exit(result.verdict.exit_code)
