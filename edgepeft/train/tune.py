"""``edgepeft tune``: find a good adapter by itself. Learning rate first, then where, then rank, then method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .device import Precision, enough_memory, takes_bf16
from .even_attention import key_site
from .methods import Settings
from .processes import check_alone
from .rank_cost import check_measurable
from .record import arguments_of, check_arguments, check_extra
from .source import Rows, load_rows
from .tune_cost import TargetCosts, prefer_cheaper
from .tune_search import Search
from .tune_stages import FEW_LABELS, contrast_stage, frozen_stage, wider_stages
from .tuned import Tuning, finished

if TYPE_CHECKING:
    from ..targets import Target


def tune(
    model: str | Path,
    data: Rows | Sequence[Rows],
    out: str | Path,
    *,
    budget_s: float = 600.0,
    mix_temperature: float = 1.0,
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
    validation: Rows | Sequence[Rows] | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    precision: Precision = "fp32",
    target: Target | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Tuning:
    """Find a good adapter for labelled rows within a time, and write it, trained on all of them.

    What matters most comes first: a head on frozen features, as the base reads them and under even attention
    (:mod:`.even_attention`), which costs next to nothing; features taught by contrast (:mod:`.contrast`), which take few steps;
    the learning rate of fine-tuning, around what a range test gives; where LoRA goes; its rank; another method last. In each stage
    all candidates train a third of the steps and the better half all of them. They are judged out of fold, on the same folds. A
    new setting is taken only where it is better by half a standard error; with up to 64 rows of a label, where judgements are
    few, contrast is weighed with what it gained elsewhere.

    Args:
        model: The base: a folder or a Hugging Face id.
        data: Labelled rows; all of them are used, to judge and in the end to train.
        out: The adapter's folder.
        budget_s: Seconds for the whole, loading and the winner's training on all rows included. At least one setting is tried.
        mix_temperature: How several sources are mixed, as for :func:`.train_adapter`. Rows are judged alike, whatever their source.
        text: The column of texts.
        label: The column of labels.
        pair: The column of second texts.
        validation: Rows that only the finished adapter is measured on.
        batch_size: Rows in a step.
        max_length: Tokens of a row.
        seed: Of the folds, initial weights and orders.
        threads: PyTorch's threads.
        precision: The floats that steps compute with, as for :func:`.train_adapter`.
        target: Among settings that are not clearly different the one is taken that adds the least to a run on this target; this
            machine must be of its kind, for that is measured (:func:`.measure_rank_costs`).
        announce: Is called with a line of text for each trial.

    Returns:
        What was tried and chosen, and the adapter.

    Raises:
        DataError: There is one label only, or fewer than four distinct rows of one.
        InputError: An option is wrong.

    Example:
        >>> found = tune("org/model", "reviews.jsonl", "reviews-lora", budget_s=300)
        >>> found.chosen
        'lora r=8 all-linear, lr 0.002'
    """
    arguments = arguments_of({name: value for name, value in locals().items() if name not in {"announce", "target"}})
    arguments["target"] = None if target is None else target.name
    folder = Path(out)
    check_arguments(folder, arguments, ("budget_s", "batch_size", "max_length", "threads"))
    if target is not None:
        check_measurable(target)
    check_alone("edgepeft tune")
    check_extra()
    split = load_rows(data, validation, text=text, label=label, pair=pair, temperature=mix_temperature)
    from ..base.load import check_source

    check_source(str(model))
    from .range_test import STEPS as RANGE_STEPS
    from .range_test import range_test
    from .trainer import seeded
    from .workbench import open_workbench

    began = time.monotonic()
    with seeded(seed, threads):
        bench = replace(open_workbench(model, split, max_length), bf16=takes_bf16(precision))
    search = Search(bench, began + budget_s - time.monotonic(), batch_size, seed, threads, announce)
    labels = int(np.unique([row.target for row in bench.rows], return_counts=True)[1].min())
    few = labels <= FEW_LABELS
    said = list(split.warnings)
    lora = Settings("lora", rank=8, targets="all-linear")
    site = key_site(bench)
    said += frozen_stage(search, site, few)
    said += contrast_stage(search, site, labels)
    rate = 0.0
    # The test is worth its time where a trial of the rate that it finds fits in too.
    if search.time_for_steps(RANGE_STEPS + search.short * len(search.folds)):
        start = time.monotonic()
        with enough_memory(search.takes_memory):
            found = range_test(bench, bench.rows, lora, batch_size=batch_size, seed=seed, threads=threads)
        search.note_steps("fine-tune", len(found.rates), time.monotonic() - start)
        rate = found.rate
        announce(f"range test: learning rate {rate:g}")
        wider_stages(search, bench, lora, rate, site)
    else:
        search.left.append("learning rates, places, ranks and other methods")
    if search.best is None:
        raise InputError("no setting could be trained; lower --batch-size, or look at the texts")
    costs = None if target is None else TargetCosts(bench, target, seed)
    told = None if costs is None else prefer_cheaper(search, costs)
    with enough_memory(search.takes_memory):
        return finished(bench, search, folder, arguments, rate, began, said, costs, told)
