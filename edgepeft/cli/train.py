"""``edgepeft train``: fine-tune an adapter."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup
from cloup import option, option_group

from ..errors import InputError
from .guarded import guarded
from .options import PATH, json_option, label_option, pair_option, text_option
from .show import print_json, warn
from .train_compare import compared, with_chosen_ranks
from .train_verdict import say_verdict
from .train_watch import watched
from .verbosity import quiet

if TYPE_CHECKING:
    from ..train import TrainedAdapter, TrainedLanguageAdapter


@cloup.command()
@option_group(
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
@option_group(
    "Data",
    option(
        "--data",
        required=True,
        metavar="FILE",
        help="Training rows: .csv, .tsv, .jsonl, .json or .parquet, or a datasets id; for generation also a .txt file or a "
        "folder of them.",
    ),
    option("--validation", metavar="FILE", show_default="split off --data", help="Validation rows, likewise."),
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
@option_group(
    "Adapter",
    option(
        "--method",
        default="lora",
        metavar="NAME",
        help="A method of PEFT (lora, ia3, oft, …), dora, rslora, pissa, ln or head-only.",
    ),
    option("--peft", multiple=True, metavar="KEY=VALUE", help="An option of PEFT's config of the method; repeatable."),
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
        help="With --from and --deploy-variant: learn to say on rounded weights what that adapter says in fp32 (generation).",
    ),
    option("--rslora", is_flag=True, help="Scale by alpha / sqrt(rank)."),
)
@option_group(
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
    option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        default="fp32",
        help="Floats that steps compute with; bf16 pays for large networks. Weights and scores stay in fp32.",
    ),
    option("--gradient-accumulation", default=1, metavar="N", help="Batches that make a step (generation)."),
    option("--gradient-checkpointing", is_flag=True, help="Less memory for more time (generation)."),
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
@json_option
@guarded
def train(
    model: str,
    data: str,
    out: Path | None,
    compare: str | None,
    verdict: bool,
    modules: str | None,
    rank_budget_mb: float | None,
    sensitivity: str,
    peft: tuple[str, ...],
    task: str | None,
    text: str,
    label: str,
    prompt: str,
    completion: str,
    messages: str,
    target_modules: str | None,
    as_json: bool,
    watch: bool,
    report_to: tuple[str, ...],
    **given: Any,
) -> None:
    """Fine-tune an adapter: LoRA, or another method of PEFT.

    For text classification from rows with a label; for text generation from rows with prompt and completion, rows with
    messages, or texts. Writes a PEFT checkpoint with its scores, settings and base identity beside it. Exit code 1: the adapter
    is worse than the base on the validation rows, beyond the 95 % interval; it is written all the same.
    """
    for file in filter(None, (data, given.get("validation"))):
        _look(Path(file))
    if out is None and compare is None and not verdict:
        raise InputError("--out is missing: the adapter folder to write (only --compare and --verdict go without)")
    from ..train import choose_task, train_adapter, train_language_adapter
    from ..train.corpus import Columns

    columns = Columns(text=text, prompt=prompt, completion=completion, messages=messages)
    task = task or choose_task(model, data, label=label, columns=columns)
    generation = task == "text-generation"
    if given["start"]:
        _refuse_with_start(compare is not None or verdict or modules is not None)
    else:
        del given["start"]
    wrong = [
        f"--{name.replace('_', '-')}"
        for name in given
        if name in (_CLASSIFICATION if generation else _GENERATION)
        and click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if wrong:
        raise InputError(f"{', '.join(wrong)}: not an option of {task}, which this call trains; see --task")
    options = {
        _NAMES.get(name, name): value
        for name, value in given.items()
        if value is not None and name not in (_CLASSIFICATION if generation else _GENERATION)
    }
    if target_modules is not None:
        options["target_modules"] = (
            target_modules if target_modules == "all-linear" else [m.strip() for m in target_modules.split(",")]
        )
    options["progress"] = False if as_json or quiet() else None
    if "problem_type" in options:
        from ..adapters.head_files import parse_problem_type

        options["problem_type"] = parse_problem_type(options["problem_type"], "--problem-type")
    if peft:
        from ..train.methods import parse_peft

        options["peft"] = parse_peft(peft)
    several = verdict or compare is not None or modules is not None
    if several and (options.get("deploy_variant") or options.get("bundle")):
        raise InputError("--deploy-variant is for one adapter, not for --compare, --verdict or --modules")
    if options["resume"] and several:
        raise InputError(
            "--resume goes on with the training of one adapter, not with --compare, --verdict or --modules"
        )
    if several:
        if options.pop("precision") != "fp32":
            raise InputError("--precision is for one adapter, not for --compare, --verdict or --modules")
        if watch or report_to:
            raise InputError(
                f"--{'watch' if watch else 'report-to'} is for the training of one adapter, not for --compare, --verdict or "
                "--modules"
            )
        del options["resume"]
    elif out is not None and not options["resume"]:
        _say_unfinished(out)
    if verdict:
        if generation:
            raise InputError("--verdict is for classification")
        say_verdict(model, data, as_json, text=text, label=label, **options)
        return
    if compare is not None:
        if generation:
            raise InputError("--compare is for classification; compare language models with edgepeft validate")
        compared(model, data, compare, out, as_json, text=text, label=label, **options)
        return
    assert out is not None  # checked above
    if modules is None and rank_budget_mb is not None:
        raise InputError("--rank-budget-mb is the budget of --modules auto")
    if modules is not None:
        if generation:
            raise InputError("--modules auto is for classification; --target-modules names modules of language models")
        options |= {"budget_mb": rank_budget_mb, "measure": sensitivity, "text": text, "label": label}
        with_chosen_ranks(model, data, out, as_json, **options)
        return
    options["report_to"] = report_to
    if generation:
        options |= asdict(columns)
    else:
        options |= {"text": text, "label": label}

    def once(**options: Any) -> None:
        if generation:
            _say_language(train_language_adapter(model, data, out, **options), as_json)
        else:
            _say_classifier(train_adapter(model, data, out, **options), as_json)

    if watch:
        if options.get("distill"):
            raise InputError(
                "--distill imitates one adapter, whatever the rows say, so --watch has nothing to learn anew"
            )
        if as_json:
            raise InputError("--json prints one result, and --watch trains again and again; leave one of them out")
        watched(once, out, [data, given.get("validation")], options)
    else:
        once(**options)


def _look(file: Path) -> None:
    """Read the first row of a file of rows: what is wrong with it is said now, and not after torch is imported."""
    from ..data_files import SUFFIXES, read_rows

    if file.suffix.lower() in SUFFIXES and next(read_rows(file), None) is None:
        raise InputError(f"{file} has no data rows")


def _refuse_with_start(several: bool) -> None:
    """Refuse options that the adapter to start from decides."""
    if several:
        raise InputError("--from starts the training of one adapter, not of --compare, --verdict or --modules")
    context = click.get_current_context()
    decided = ("method", "peft", "ship", "rank", "alpha", "dropout", "target_modules", "dora", "rslora")
    given = [n for n in decided if context.get_parameter_source(n) is click.core.ParameterSource.COMMANDLINE]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{names}: with --from the adapter decides this; leave it out")


def _say_unfinished(out: Path) -> None:
    from ..train.resume import is_unfinished

    if is_unfinished(out):
        warn(f"a training of {out} that was broken off is thrown away; --resume would have gone on with it")


#: Parameters of one task only, and what the functions behind call some.
_CLASSIFICATION = {"pair", "problem_type"}
_GENERATION = {
    "chat",
    "chat_template",
    "distill",
    "max_steps",
    "schedule",
    "gradient_accumulation",
    "gradient_checkpointing",
    "packing",
}
_NAMES = {"dora": "use_dora", "rslora": "use_rslora"}


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


def _say_classifier(result: TrainedAdapter, as_json: bool) -> None:
    if result.truncated_rows:
        warn(f"{result.truncated_rows} rows were cut to the longest input; see --max-length")
    if as_json:
        print_json(asdict(result))
        _conclude(result)
        return
    _say_circumstances(result)
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
    _conclude(result)


def _say_language(result: TrainedLanguageAdapter, as_json: bool) -> None:
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
    _conclude(result)
