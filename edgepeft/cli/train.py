"""``edgepeft train``: fine-tune an adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from ..errors import InputError
from .guarded import guarded
from .options import json_option
from .show import warn
from .train_compare import compared, with_chosen_ranks
from .train_options import adapter_options, data_options, training_options, what_options
from .train_processes import first_speaks
from .train_result import say_classifier, say_language
from .train_sources import one_or_all
from .train_verdict import say_verdict
from .train_watch import watched
from .verbosity import quiet

if TYPE_CHECKING:
    from ..targets import Target


@cloup.command()
@what_options
@data_options
@adapter_options
@training_options
@json_option
@guarded
@first_speaks()
def train(
    model: str,
    data: tuple[str, ...],
    validation: tuple[str, ...],
    out: Path | None,
    compare: str | None,
    verdict: bool,
    modules: str | None,
    rank_budget_mb: float | None,
    rank_budget_ms: float | None,
    target: str | None,
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
    for file in filter(None, (*data, *validation, given.get("general"))):
        _look(Path(file))
    if out is None and compare is None and not verdict:
        raise InputError("--out is missing: the adapter folder to write (only --compare and --verdict go without)")
    from ..train import choose_task, train_adapter, train_language_adapter
    from ..train.corpus import Columns
    from ..train.processes import check_alone

    columns = Columns(text=text, prompt=prompt, completion=completion, messages=messages)
    task = task or choose_task(model, data[0], label=label, columns=columns)
    rows = one_or_all(data)
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
    options["validation"] = one_or_all(validation) if validation else None
    options["progress"] = False if as_json or quiet() else None
    if "problem_type" in options:
        from ..adapters.head_files import parse_problem_type

        options["problem_type"] = parse_problem_type(options["problem_type"], "--problem-type")
    if peft:
        from ..train.methods import parse_peft

        options["peft"] = parse_peft(peft, given["method"])
    several = verdict or compare is not None or modules is not None
    if several and (options.get("deploy_variant") or options.get("bundle")):
        raise InputError("--deploy-variant is for one adapter, not for --compare, --verdict or --modules")
    if options["resume"] and several:
        raise InputError(
            "--resume goes on with the training of one adapter, not with --compare, --verdict or --modules"
        )
    if several:
        for name in ("distill", "teacher", "split_by", "general"):
            if options.pop(name, None):
                raise InputError(
                    f"--{name.replace('_', '-')} is for the training of one adapter, not for --compare, --verdict or --modules"
                )
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
        say_verdict(model, rows, as_json, text=text, label=label, **options)
        return
    if compare is not None:
        if generation:
            raise InputError("--compare is for classification; compare language models with edgepeft validate")
        compared(model, rows, compare, out, as_json, text=text, label=label, **options)
        return
    assert out is not None  # checked above
    if modules is None and (rank_budget_mb, rank_budget_ms, target) != (None, None, None):
        raise InputError("--rank-budget-mb, --rank-budget-ms and --target are for --modules auto")
    if modules is not None:
        if generation:
            raise InputError("--modules auto is for classification; --target-modules names modules of language models")
        options |= {"budget_mb": rank_budget_mb, "measure": sensitivity, "text": text, "label": label}
        options |= {"budget_ms": rank_budget_ms, "target": _budget_target(rank_budget_ms, target)}
        with_chosen_ranks(model, rows, out, as_json, **options)
        return
    options["report_to"] = report_to
    if generation:
        options |= asdict(columns)
    else:
        options |= {"text": text, "label": label}

    def once(**options: Any) -> None:
        if generation:
            say_language(train_language_adapter(model, rows, out, **options), as_json)
        else:
            say_classifier(train_adapter(model, rows, out, **options), as_json)

    if watch:
        if options.get("distill"):
            raise InputError(
                "--distill imitates one adapter, whatever the rows say, so --watch has nothing to learn anew"
            )
        if as_json:
            raise InputError("--json prints one result, and --watch trains again and again; leave one of them out")
        check_alone("train --watch")
        watched(once, out, [*data, *validation], options)
    else:
        once(**options)


def _look(file: Path) -> None:
    """Read the first row of a file of rows: what is wrong with it is said now, and not after torch is imported."""
    from ..data_files import SUFFIXES, read_rows

    if file.suffix.lower() in SUFFIXES and next(read_rows(file), None) is None:
        raise InputError(f"{file} has no data rows")


def _budget_target(budget_ms: float | None, name: str | None) -> Target | None:
    """The target whose milliseconds are counted, where some are."""
    if budget_ms is None and name is None:
        return None
    from ..targets import load_target

    return load_target(name or "linux-x64-cpu")


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
_CLASSIFICATION = {"pair", "problem_type", "split_by", "teacher"}
_GENERATION = {
    "chat",
    "chat_template",
    "max_steps",
    "schedule",
    "gradient_accumulation",
    "packing",
}
_NAMES = {"dora": "use_dora", "rslora": "use_rslora"}
