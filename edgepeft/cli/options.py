"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click
from cloup import option

from ..executors import executor_names
from ..quantize.recipes import with_texts

#: The type of an option that takes a path.
PATH = click.Path(path_type=Path)

json_option = option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
force_option = option(
    "--force", is_flag=True, help="Accept a foreign adapter whose base_model_name_or_path names another base."
)
dry_run_option = option(
    "--dry-run", is_flag=True, help="Do it and check it, then keep nothing: files, sizes, refusals."
)
precision_option = option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    help="Floats that steps compute with; bf16 is faster where the processor or GPU has it. Weights and scores stay in fp32.",
)
adapter_form_option = option(
    "--adapter-form",
    "form",
    type=click.Choice(("auto", "fp32", "fp16", "int8")),
    default="fp32",
    help="How adapters are stored: fp32, as every binding of ONNX Runtime loads it; fp16 or int8, which edgepeft's runtimes "
    "expand; auto: the smallest that changes at most 2 % of what the adapter does.",
)
bundle_argument = click.argument("bundle", type=PATH)
lock_option = option(
    "--lock-timeout",
    type=click.FloatRange(min=0, max=86_400),
    default=60.0,  # bundle.LOCK_TIMEOUT, which a look at --help need not import
    metavar="SECONDS",
    help="How long to wait for another command that changes the same bundle.",
)
threads_option = option("--threads", type=click.IntRange(min=1), metavar="N", help="ONNX Runtime's intra-op threads.")

# What is read from files of rows.
text_option = option("--text", default="text", metavar="COLUMN", help="Column of the text.")
label_option = option("--label", default="label", metavar="COLUMN", help="Column of the label.")
pair_option = option("--pair", metavar="COLUMN", help="Column of a second text, for pairs.")
mix_temperature_option = option(
    "--mix-temperature",
    type=float,
    default=1.0,
    metavar="T",
    help="How several --data are mixed: a source of n rows is drawn in proportion to n^(1/T). 1 is by size, a large T uniform.",
)
calibration_option = option(
    "--data",
    multiple=True,
    metavar="NAME=FILE",
    help=f"Texts of an adapter, '*=FILE' for all: what {with_texts()} measures activations with and q4 is fitted to; of speech "
    "rows with files of sound. May be repeated; columns as in NAME=FILE:text=body,pair=title.",
)
refit_data_option = option(
    "--data",
    multiple=True,
    metavar="NAME=FILE",
    help="What --refit fits the adapter to, every fifth kept apart: texts, or prompts with completions or conversations of a "
    "language model's. Columns of its own: NAME=FILE:text=body.",
)
data_option = option(
    "--data",
    multiple=True,
    metavar="NAME=FILE",
    help="Labelled rows (.csv, .tsv, .jsonl, .json, .parquet) of an adapter, or texts, prompts or conversations of a language "
    "model's. May be repeated; columns of its own: NAME=FILE:text=body,label=stars.",
)

# What is measured, and where.
target_option = option(
    "--target", default="linux-x64-cpu", metavar="TARGET", help="A shipped target, or a target file."
)
on_option = option(
    "--on",
    metavar="EXECUTOR",
    show_default="the target's",
    help=f"Execute there instead: {executor_names(static=False)}.",
)
adapter_names = option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME",
    show_default="all",
    help="Only this adapter. May be repeated.",
)
variant_names = option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    show_default="all that apply",
    help="Only this variant. May be repeated.",
)
shape_option = option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="BATCHxTOKENS",
    show_default="those with a budget",
    help="Only this input shape. May be repeated.",
)
bench_threads_option = option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="the target's",
    help="ONNX Runtime's intra-op threads.",
)
report_option = option(
    "--report", type=PATH, show_default="BUNDLE/report", help="Folder for the JSON, Markdown and JUnit report."
)
