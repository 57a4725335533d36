"""Training one adapter of a classifier: the stage function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..bundle.heads import ProblemType
from ..data import Examples
from ..errors import InputError
from .adapter_result import TrainedAdapter, finish
from .deployed import Deployed, DeployedWeights, check_deployment, scores_now
from .device import Precision, takes_bf16
from .loop import Schedule, Scores
from .methods import Settings, check_shipping, settings_of
from .processes import is_first, join
from .record import arguments_of, check_arguments, check_extra
from .reporters import callbacks_of
from .resume import Keeper, call_of, row_contents
from .source import load_split
from .start import Source, StartedFrom, nearest, read_sources, started
from .teacher import Teacher, check_teacher, logits_now, model_teacher

if TYPE_CHECKING:
    from .workbench import Workbench


def train_adapter(
    model: str | Path,
    data: str | Path | Examples | Sequence[str | Path | Examples],
    out: str | Path,
    *,
    mix_temperature: float = 1.0,
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
    problem_type: ProblemType = "single_label_classification",
    validation: str | Path | Examples | Sequence[str | Path | Examples] | None = None,
    validation_fraction: float = 0.1,
    split_by: str | None = None,
    general: str | Path | None = None,
    method: str = "lora",
    peft: Mapping[str, Any] | None = None,
    ship: Literal["swap", "merge", "bake"] | None = None,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] | None = None,
    use_dora: bool = False,
    use_rslora: bool = False,
    epochs: int = 3,
    learning_rate: float | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    patience: int | None = 2,
    seed: int = 0,
    threads: int | None = None,
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
    report_to: Sequence[str] = (),
    resume: bool = False,
    start: str | Path | Sequence[str | Path] | None = None,
    deploy_variant: str | None = None,
    bundle: str | Path | None = None,
    distill: bool = False,
    teacher: str | Path | None = None,
    on_epoch: Callable[[int, Scores], None] | None = None,
    progress: bool | None = None,
) -> TrainedAdapter:
    """Fine-tune an adapter that classifies texts, LoRA or another method, and write it to a folder.

    With ``threads`` given, the same call on the same machine gives the same weights. Modules that the checkpoint lacks (the
    classification head) are trained in full and saved with the adapter. ``out`` appears whole or not at all. Where a launcher
    started several processes (``torchrun``, ``accelerate launch``) all make this call: each computes a share of every batch, and
    the first one writes.

    Args:
        model: The base: a folder or a Hugging Face id.
        data: A CSV, TSV or JSONL file, a ``datasets`` id (``id`` or ``id:configuration``) or folder, or
            :class:`~edgepeft.data.Examples`. Several of them must have the same labels, and scores are told of each.
        out: The adapter's folder. An adapter that edgepeft wrote there is replaced; any other folder is refused.
        mix_temperature: Of several sources: one of ``n`` rows is drawn in proportion to ``n ** (1 / mix_temperature)``, so 1 is by
            size and a large number uniform.
        text: The column of texts.
        label: The column of labels.
        pair: The column of second texts, for pairs.
        problem_type: What the labels are: one a row, any number a row (``"multi_label_classification"``; a row is ``a,b`` or a JSON
            list), or a number (``"regression"``).
        validation: Rows to measure on, as ``data``: for each source in their order, or for all of them.
        validation_fraction: The share of rows (of each source) that is held out where ``validation`` is not given.
        split_by: A column that names groups (authors, sites, …): what is held out are whole groups.
        general: Rows of other domains, as ``data``: the epoch is chosen by the mean of the scores on them and on the validation
            rows, and both are told.
        method: What is trained: a method of PEFT (``"lora"``, ``"ia3"``, ``"oft"``, …), ``"dora"``, ``"rslora"``, ``"ln"`` or
            ``"head-only"``.
        peft: Options of PEFT's config of the method, by their names there.
        ship: How the adapter is to ship; a method that cannot is refused.
        rank: LoRA's rank, and that of other methods that have one.
        alpha: LoRA's alpha; the change is scaled by ``alpha / rank``.
        dropout: LoRA's dropout, a share.
        target_modules: Module names or ``"all-linear"``. By default the attention projections that PEFT knows for the
            architecture, or all linear layers.
        use_dora: Train DoRA.
        use_rslora: Scale by ``alpha / sqrt(rank)``.
        epochs: The most passes over the data.
        learning_rate: The learning rate at its highest; by default 1e-3, 1e-2 for IA3 and a head alone, 3e-3 for norms.
        batch_size: Rows in a step.
        max_length: Tokens of a row, the rest is cut; by default 128, or the model's limit where that is lower.
        patience: Epochs without a better validation macro F1 (of numbers: mean error) after which training stops (``None``:
            never). The best epoch is kept either way.
        seed: Of the initial weights and the order of rows.
        threads: PyTorch's threads; by default as many as turn out fastest on the steps themselves.
        precision: The floats that steps compute with: ``"fp32"``, or ``"bf16"``, which is faster where the processor or GPU has it;
            weights, and all that is measured, stay in float32.
        gradient_checkpointing: Let layers compute their activations again in the backward pass: less memory, more time, the same
            weights.
        report_to: Reporters of Hugging Face's Trainer (``"tensorboard"``, ``"wandb"``, ``"mlflow"``, …) that are told of losses and
            scores. TensorBoard's files go to ``runs/NAME`` beside ``out``.
        resume: Go on where the same call was broken off; the weights are then those of one run, where ``threads`` is given.
            Where nothing was broken off it begins.
        start: An adapter of the same base to train on from, with its method, rank and modules, which the arguments for these
            then do not say; its head is kept where it was trained for the same labels. Of several the nearest is taken: by the
            error of rows left out, in ridge regression on the features that it gives them.
        deploy_variant: Train against the rounded weights of this variant of ``bundle`` (``"q4"``, ``"int8"``), as they ship;
            measured on them and on fp32. Activations stay in floats.
        bundle: The bundle that the adapter will be added to.
        distill: With ``start`` and ``deploy_variant``: learn to say on rounded weights what the adapter that is started from says
            on the base's own, in place of the labels of the training rows.
        teacher: A classifier, larger or fine-tuned whole, with the same label names: learn to say of the training rows what it
            says.
        on_epoch: Is called after each epoch with its number (from 1) and its scores; what it raises ends the training.
        progress: Show the bar or not; by default on a terminal.

    Returns:
        The folder, the labels, the scores before and after, and the seconds in the training loop.

    Raises:
        DataError: A row of the data is wrong.
        MissingExtraError: The extra ``train`` is not installed.
        InputError: An option is wrong, ``out`` is another kind of folder, or what was broken off was another call.
        UnsupportedAdapterError: The method cannot ship, or not as ``ship`` says.

    Example:
        >>> trained = train_adapter("org/model", "reviews.jsonl", "reviews-lora", rank=8)
        >>> trained.after.accuracy > trained.before.accuracy
        True
    """
    arguments = arguments_of({name: value for name, value in locals().items() if name != "on_epoch"})
    out = Path(out)
    check_arguments(
        out,
        arguments,
        ("rank", "epochs", "batch_size", "alpha", "learning_rate", "max_length", "patience", "threads"),
    )
    check_shipping(method, "SEQ_CLS", ship)
    sources = [] if start is None else read_sources(start, "SEQ_CLS", learning_rate)
    check_deployment(deploy_variant, bundle)
    check_teacher(distill, teacher, deploy_variant, bool(sources))
    check_extra()
    split = load_split(  # before torch is imported: what is wrong with the data is said at once
        data,
        validation=validation,
        fraction=validation_fraction,
        text=text,
        label=label,
        pair=pair,
        seed=seed,
        problem_type=problem_type,
        split_by=split_by,
        general=general,
        temperature=mix_temperature,
    )
    from ..base.load import check_source

    check_source(str(model))
    settings = settings_of(
        method,
        rank,
        alpha,
        dropout,
        target_modules,
        {"use_dora": use_dora, "use_rslora": use_rslora},
        peft,
        learning_rate,
    )

    from .adapt import adapt
    from .loop import fit
    from .trainer import seeded
    from .workbench import open_workbench

    join()
    with seeded(seed, threads):  # the fresh head and lora_A are drawn here
        bench = open_workbench(model, split, max_length)
        rounded = (
            None if deploy_variant is None or bundle is None else DeployedWeights(bench.base, bundle, deploy_variant)
        )
        if not sources:
            begun = None
            adapted = adapt(bench.base, settings, steps=epochs * -(-len(bench.rows) // batch_size))
        else:
            adapted, settings, begun = _started(bench, sources)
    rows: list[Any] = [row_contents(each) for each in (bench.rows, bench.held, bench.general)] + [list(split.labels)]
    rows.append([each.sha256 for each in sources])
    if split.sources:
        rows.append([split.train_sources, split.held_sources])
    master = None if teacher is None else model_teacher(teacher, split, bench.rows)
    fp32_before = None
    if rounded is not None:
        with rounded.floats():
            fp32_before = scores_now(bench, adapted, threads)
            if distill and begun is not None:
                master = _imitated(bench, adapted, begun)
    if master is not None:
        rows.append(master.identity)
    keeper = Keeper(out, call_of(arguments, bench.base.identity, rows), resume=resume)
    began = time.perf_counter()
    bf16 = takes_bf16(precision)
    schedule = Schedule(
        epochs, settings.rate, batch_size, seed, patience, threads, bf16, gradient_checkpointing, mix_temperature
    )
    course = fit(
        adapted,
        bench.base.tokenizer,
        bench.rows,
        bench.held,
        schedule,
        bench.problem,
        progress=progress if is_first() else False,
        keeper=keeper,
        on_epoch=on_epoch,
        report_to=callbacks_of(report_to, out) if is_first() else (),
        settings={"out": out, "learning_rate": settings.rate, "seed": seed},
        loss_of=None if master is None else master.loss,
        general=bench.general,
    )
    seconds = time.perf_counter() - began
    deployed = None
    if rounded is not None:
        with rounded.floats():
            after = scores_now(bench, adapted, threads)
        deployed = Deployed(rounded.variant, rounded.layers, fp32_before, after)
    taught = None
    if master is not None:
        mine = logits_now(adapted, bench.base.tokenizer, bench.held)
        taught = master.taught(mine, bench.held, bench.problem)
    result = finish(bench, adapted, course, out, arguments, seconds, start=begun, deployed=deployed, taught=taught)
    keeper.done()
    return result


def _started(bench: Workbench, sources: Sequence[Source]) -> tuple[Any, Settings, StartedFrom]:
    """The base with the nearest of ``sources`` on it, that adapter's settings, and what to say of it."""
    from .nearness import MEASURE, nearness

    labels = bench.split.labels

    def measure(model: Any) -> float:
        return nearness(model, bench.base.tokenizer, bench.rows, len(labels))

    source, begun = nearest(bench.base, sources, labels, "SEQ_CLS", measure, MEASURE)
    adapted, head = started(bench.base, source, labels, "SEQ_CLS")
    return adapted, source.settings, replace(begun, head=head)


def _imitated(bench: Workbench, adapted: Any, begun: StartedFrom) -> Teacher:
    """What the adapter that is started from says on the weights that the base has now."""
    if not begun.head:
        raise InputError(
            f"--distill imitates {begun.folder}, whose head is for other labels than these rows have "
            f"({', '.join(bench.split.labels)}); train it for them first"
        )
    said, of_held = (logits_now(adapted, bench.base.tokenizer, rows) for rows in (bench.rows, bench.held))
    return Teacher(f"{begun.folder} on fp32", bench.base.identity, bench.rows, said, of_held, bench.problem.kind)
