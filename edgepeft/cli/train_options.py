"""The options of ``edgepeft train``, by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from cloup import option, option_group

from .options import PATH, label_option, mix_temperature_option, pair_option, precision_option, text_option

what_options: Callable[[Any], Any] = option_group(
    "What",
    option("--model", required=True, metavar="MODEL", help="The base: a folder or a Hugging Face id."),
    option(
        "--out",
        type=PATH,
        help="The adapter folder to write; an old adapter there is replaced. With --compare: the best one that ships, if given.",
    ),
    option(
        "--task",
        type=click.Choice(["text-classification", "text-generation"]),
        show_default="told by the columns of --data, else by the model",
        help="What to train for.",
    ),
)

data_options: Callable[[Any], Any] = option_group(
    "Data",
    option(
        "--data",
        required=True,
        multiple=True,
        metavar="FILE",
        help="Training rows: .csv, .tsv, .jsonl, .json or .parquet, or a datasets id; for generation also a .txt file or a "
        "folder of them. Repeated: several sources, each with scores of its own.",
    ),
    option(
        "--validation",
        multiple=True,
        metavar="FILE",
        show_default="split off each --data",
        help="Validation rows, likewise: one for each --data in their order, or one for all.",
    ),
    mix_temperature_option,
    option(
        "--general",
        metavar="FILE",
        help="Rows of other domains, to see what is forgotten: the epoch is chosen by the mean of the scores on them and on the "
        "validation rows, and both are told.",
    ),
    option(
        "--split-by",
        metavar="COLUMN",
        help="Without --validation: hold out whole groups of this column (authors, sites), so that scores are of groups that "
        "training never saw (classification).",
    ),
    text_option,
    label_option,
    pair_option,
    option(
        "--problem-type",
        metavar="TYPE",
        show_default="single_label",
        help="What a row's label is (classification): single_label, multi_label (a,b or a JSON list) or regression (a number).",
    ),
    option("--prompt", default="prompt", metavar="COLUMN", help="Column of the prompt (generation)."),
    option(
        "--completion",
        default="completion",
        metavar="COLUMN",
        help="Column of what to answer (generation).",
    ),
    option("--messages", default="messages", metavar="COLUMN", help="Column of conversations (generation)."),
    option(
        "--chat/--plain",
        default=None,
        show_default="chat where the tokenizer has a template",
        help="Lay prompt and completion out with the chat template, or as they stand.",
    ),
    option("--chat-template", type=PATH, metavar="FILE", help="A Jinja file instead of the tokenizer's template."),
)

adapter_options: Callable[[Any], Any] = option_group(
    "Adapter",
    option(
        "--method",
        default="lora",
        metavar="NAME",
        help="A method of PEFT (lora, ia3, oft, …), dora, rslora, pissa, ln or head-only.",
    ),
    option(
        "--peft",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of PEFT's config of the method, or a JSON file of them (FILE.json); repeatable.",
    ),
    option(
        "--ship",
        type=click.Choice(["swap", "merge", "bake"]),
        help="How it is to ship; a method that cannot is refused, with the reason.",
    ),
    option(
        "--compare",
        metavar="NAMES",
        help="Methods to train side by side, such as lora,dora,ia3,ln,head-only,full (classification): quality with intervals, "
        "share, memory, time, size.",
    ),
    option(
        "--verdict",
        is_flag=True,
        help="Do not train an adapter but tell whether one suffices, or more rank, more data or all weights would be better "
        "(classification).",
    ),
    option("--rank", default=8, metavar="N", help="Rank, of methods that have one."),
    option("--alpha", default=16.0, metavar="X", help="LoRA alpha; the scaling is alpha / rank."),
    option("--dropout", default=0.0, metavar="P", help="LoRA dropout."),
    option(
        "--target-modules",
        metavar="NAMES",
        show_default="attention projections; all-linear for generation, and for LoRA with --compare",
        help="Comma-separated module names, or all-linear.",
    ),
    option(
        "--modules",
        type=click.Choice(["auto"]),
        help="auto: ranks where a few batches say that they are worth most (classification), against uniform ranks of as many "
        "bytes; the better is written.",
    ),
    option(
        "--rank-budget-mb",
        type=float,
        metavar="MB",
        show_default="what --rank at --target-modules takes",
        help="What the matrices of --modules auto may take on disk.",
    ),
    option(
        "--rank-budget-ms",
        type=float,
        metavar="MS",
        help="In its place, what the adapter of --modules auto may add to one run of --target's smallest shape, as measured here.",
    ),
    option(
        "--target",
        metavar="TARGET",
        show_default="linux-x64-cpu",
        help="Whose milliseconds --rank-budget-ms counts: a shipped target, or a target file, of this kind of machine.",
    ),
    option(
        "--sensitivity",
        type=click.Choice(["gradient", "fisher", "taylor", "eva"]),
        default="gradient",
        help="How --modules auto tells what a layer is worth.",
    ),
    option("--dora", is_flag=True, help="DoRA: train the magnitude too."),
    option(
        "--from",
        "start",
        multiple=True,
        type=PATH,
        metavar="ADAPTER",
        help="Train on from an adapter of the same base, with its method, rank and modules; repeated: from the nearest of them, "
        "which is measured and said.",
    ),
    option(
        "--deploy-variant",
        metavar="VARIANT",
        help="Train against the rounded weights of this variant of --bundle (q4, int8), as they ship; measured on both.",
    ),
    option(
        "--bundle",
        type=PATH,
        metavar="BUNDLE",
        help="The bundle that the adapter will be added to, for --deploy-variant.",
    ),
    option(
        "--distill",
        is_flag=True,
        help="With --from and --deploy-variant: learn to say on rounded weights what that adapter says in fp32.",
    ),
    option(
        "--teacher",
        metavar="MODEL",
        help="Learn to say what this classifier says, a folder or a Hugging Face id: a larger one, or one that was fine-tuned "
        "whole (classification).",
    ),
    option("--rslora", is_flag=True, help="Scale by alpha / sqrt(rank)."),
)

training_options: Callable[[Any], Any] = option_group(
    "Training",
    option("--epochs", default=3, metavar="N", help="Epochs at most."),
    option("--max-steps", type=int, metavar="N", help="Steps at most (generation)."),
    option("--patience", default=2, metavar="N", help="Epochs without a better score before it stops."),
    option(
        "--learning-rate",
        type=float,
        metavar="X",
        show_default="1e-3, or what is usual for --method; 5e-4 for generation",
        help="Peak learning rate.",
    ),
    option(
        "--schedule",
        type=click.Choice(["linear", "cosine", "constant"]),
        default="linear",
        help="How the learning rate goes on after its peak (generation).",
    ),
    option(
        "--batch-size",
        type=int,
        metavar="N",
        show_default="16; 8 for generation",
        help="Rows computed at once.",
    ),
    precision_option,
    option("--gradient-accumulation", default=1, metavar="N", help="Batches that make a step (generation)."),
    option(
        "--gradient-checkpointing",
        is_flag=True,
        help="Layers compute their activations again in the backward pass: less memory for more time, the same weights.",
    ),
    option(
        "--packing/--no-packing",
        default=None,
        show_default="for text",
        help="Join short sequences to blocks of --max-length instead of padding them (generation).",
    ),
    option(
        "--max-length",
        type=int,
        metavar="N",
        show_default="128, 512 for generation, or the model's limit",
        help="Tokens a row is cut to.",
    ),
    option("--seed", default=0, metavar="N", help="Seed of everything that is drawn."),
    option(
        "--resume",
        is_flag=True,
        help="Go on where the same call was broken off. Its state is kept beside --out while it runs.",
    ),
    option(
        "--watch",
        is_flag=True,
        help="When --data or --validation changes, train again from the adapter that was written; ends with Ctrl-C.",
    ),
    option(
        "--report-to",
        multiple=True,
        metavar="NAME",
        help="tensorboard, wandb, mlflow, … of Hugging Face's Trainer is told losses and scores; repeatable.",
    ),
    option(
        "--threads",
        type=int,
        metavar="N",
        show_default="the fastest, timed on the steps; all for generation",
        help="PyTorch's threads. Given, the same call gives the same weights.",
    ),
)
