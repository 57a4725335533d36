"""Training one adapter of a causal language model: the stage function."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data_files import read_text
from ..errors import InputError
from .corpora import read_corpora, sequences_of_all
from .corpus import Columns
from .deployed import Deployed, DeployedWeights, check_deployment
from .device import Precision, takes_bf16, training_device
from .encode import Tokens
from .gain import gain_warning, likelihood_gain
from .language_result import LanguageGeneral, TrainedLanguageAdapter, language_record
from .language_rows import general_sequences, pad_id_of
from .leaks import leak_warning
from .methods import Settings, check_shipping, settings_of, takes_norms
from .processes import is_first, join
from .record import arguments_of, check_arguments, check_extra, write_checkpoint
from .reporters import callbacks_of
from .resume import Keeper, call_of
from .source_scores import language_scores
from .start import Source, StartedFrom, nearest, read_sources, started
from .teacher import check_teacher

if TYPE_CHECKING:
    from .base import BaseModel

TASK = "text-generation"
SCHEDULES = ("linear", "cosine", "constant")
_DEFAULT_MAX_LENGTH = 512
#: Tokens on which adapters to start from are compared.
_NEAREST_TOKENS = 4096
_TEMPLATE_FILE = "chat_template.jinja"


def train_language_adapter(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    mix_temperature: float = 1.0,
    text: str = "text",
    prompt: str = "prompt",
    completion: str = "completion",
    messages: str = "messages",
    validation: str | Path | Sequence[str | Path] | None = None,
    validation_fraction: float = 0.1,
    general: str | Path | None = None,
    method: str = "lora",
    peft: Mapping[str, Any] | None = None,
    ship: Literal["swap", "merge", "bake"] | None = None,
    max_validation_tokens: int = 8192,
    chat: bool | None = None,
    chat_template: str | Path | None = None,
    packing: bool | None = None,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] | None = None,
    use_dora: bool = False,
    use_rslora: bool = False,
    epochs: int = 3,
    max_steps: int | None = None,
    learning_rate: float = 5e-4,
    schedule: str = "linear",
    warmup: float = 0.06,
    batch_size: int = 8,
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    max_length: int | None = None,
    patience: int | None = 2,
    seed: int = 0,
    threads: int | None = None,
    precision: Precision = "fp32",
    report_to: Sequence[str] = (),
    resume: bool = False,
    start: str | Path | Sequence[str | Path] | None = None,
    deploy_variant: str | None = None,
    bundle: str | Path | None = None,
    distill: bool = False,
    progress: bool | None = None,
) -> TrainedLanguageAdapter:
    """Fine-tune an adapter, LoRA or another method, of a causal language model and write it to a folder.

    The loss is on what the model is to say: completions with the end-of-sequence token, the assistant's turns, all of a
    text. ``out`` appears whole or not at all. The same call on the same machine gives the same weights. Where a launcher started
    several processes (``torchrun``, ``accelerate launch``) all make this call: each computes a share of every batch, and the first
    one writes.

    Args:
        model: The base: a folder or a Hugging Face id.
        data: What :func:`.corpus.read_corpus` reads: rows with the columns ``prompt`` and ``completion``, ``messages``, or
            ``text``; or text files. Several of them hold rows of one kind, and scores are told of each.
        out: The adapter's folder. An adapter that edgepeft wrote there is replaced; any other folder is refused.
        mix_temperature: Of several sources: a source of ``n`` rows (blocks, where they are packed) is drawn in proportion to
            ``n ** (1 / mix_temperature)``.
        text: The column of texts.
        prompt: The column of prompts.
        completion: The column of completions.
        messages: The column of chats.
        validation: Rows to measure on, as ``data``: for each source in their order, or for all of them.
        validation_fraction: The share of distinct prompts or texts (of each source) that is held out where ``validation`` is not
            given.
        general: Rows of other domains, as ``data``, to see what is forgotten: the epoch is chosen by the mean of the losses on them
            and on the validation rows, and both are told.
        method: What is trained: a method of PEFT (``"lora"``, ``"ia3"``, ``"prefix_tuning"``, …), ``"dora"``, ``"rslora"`` or
            ``"ln"``.
        peft: Options of PEFT's config of the method, by their names there.
        ship: How the adapter is to ship; a method that cannot is refused.
        max_validation_tokens: The most learnt tokens that are measured.
        chat: Whether prompt and completion go through the chat template; by default where the tokenizer has one.
        chat_template: A Jinja file that takes the place of the tokenizer's own, and is saved with the adapter.
        packing: Whether sequences are joined to blocks of ``max_length`` tokens, without seeing each other; by default for
            texts. Else they are padded.
        rank: LoRA's rank, and that of other methods that have one.
        alpha: LoRA's alpha; the change is scaled by ``alpha / rank``.
        dropout: LoRA's dropout, a share.
        target_modules: Module names; by default ``"all-linear"``: every linear layer of the decoder but the head.
        use_dora: Train DoRA.
        use_rslora: Scale by ``alpha / sqrt(rank)``.
        epochs: The most passes over the data.
        max_steps: The most steps.
        learning_rate: The learning rate at its highest.
        schedule: ``"linear"``, ``"cosine"`` or ``"constant"``, after the warm-up.
        warmup: The share of the steps in which the learning rate rises, 0 to 1.
        batch_size: Sequences or blocks that are computed at once.
        gradient_accumulation: Batches in a step.
        gradient_checkpointing: Compute activations again in the backward pass: less memory, more time.
        max_length: Tokens of a sequence or block; by default 512, or the model's limit where that is lower.
        patience: Epochs without a better perplexity after which training stops (``None``: never). The best epoch is kept.
        seed: Of the initial weights and the order of rows.
        threads: PyTorch's threads.
        precision: The floats that steps compute with: ``"fp32"``, or ``"bf16"``, which pays for large networks;
            weights, and all that is measured, stay in float32.
        report_to: Reporters of Hugging Face's Trainer (``"tensorboard"``, ``"wandb"``, ``"mlflow"``, …) that are told of losses and
            scores. TensorBoard's files go to ``runs/NAME`` beside ``out``.
        resume: Go on where the same call was broken off; the weights are then those of one run. Where nothing was broken off it
            begins.
        start: An adapter of the same base to train on from, with its method, rank and modules, which the arguments for these
            then do not say. Of several the nearest is taken: by the loss on training rows.
        deploy_variant: Train against the rounded weights of this variant of ``bundle`` (``"q4"``, ``"int8"``), as they ship;
            measured on them and on fp32. Activations stay in floats.
        bundle: The bundle that the adapter will be added to.
        distill: With ``start`` and ``deploy_variant``: learn to say on rounded weights what the adapter that is started from says
            on the base's own, at every token, in place of what the rows say.
        progress: Show the bar or not; by default on a terminal.

    Returns:
        The folder, the perplexities before and after, counts of tokens, and the seconds in the training loop.

    Raises:
        DataError: A row of the data is wrong.
        MissingExtraError: The extra ``train`` is not installed.
        InputError: An option is wrong, or ``out`` is another kind of folder.
        UnsupportedAdapterError: The method cannot ship, or not as ``ship`` says.

    Example:
        >>> trained = train_language_adapter("org/language-model", "support.jsonl", "support-lora")
        >>> trained.layout
        'chat'
    """
    arguments = arguments_of(locals())
    out = Path(out)
    positive = ("rank", "epochs", "max_steps", "batch_size", "gradient_accumulation", "alpha", "learning_rate")
    check_arguments(out, arguments, (*positive, "max_length", "max_validation_tokens", "patience", "threads"))
    if schedule not in SCHEDULES:
        raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, found {schedule!r}")
    if not 0 <= warmup < 1:
        raise InputError(f"warmup must lie between 0 and 1 (a share of the steps), found {warmup}")
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length must be at least 2: one token to predict another, found {max_length}")
    check_shipping(method, "CAUSAL_LM", ship)
    flags = {"use_dora": use_dora, "use_rslora": use_rslora}
    settings = settings_of(method, rank, alpha, dropout, target_modules, flags, peft, learning_rate)
    sources = [] if start is None else read_sources(start, "CAUSAL_LM", learning_rate)
    check_deployment(deploy_variant, bundle)
    check_teacher(distill, None, deploy_variant, bool(sources))
    check_extra()
    template = None if chat_template is None else read_text(Path(chat_template))
    columns = Columns(text=text, prompt=prompt, completion=completion, messages=messages)
    corpora = read_corpora(data, validation, columns, mix_temperature, general)

    from ..base.load import check_source

    check_source(str(model))
    from .base import load_language_base, token_limit
    from .distill import Teacher
    from .lm_loop import LanguageSchedule, fit_language
    from .methods import trainable
    from .perplexity import change, measure, summarize
    from .trainer import seeded

    join()
    base = load_language_base(model, template)
    rounded = None if deploy_variant is None or bundle is None else DeployedWeights(base, bundle, deploy_variant)
    bf16 = takes_bf16(precision)
    base.model.to(training_device())  # before Trainer would: what is measured first is measured there too
    longest = token_limit(base.tokenizer, base.model.config)
    if max_length is not None and max_length > longest:
        raise InputError(f"max_length {max_length} is more than the {longest} tokens {base.source} can take")
    length = min(_DEFAULT_MAX_LENGTH, longest) if max_length is None else max_length
    rows, also_leaked = sequences_of_all(
        corpora,
        base.tokenizer,
        source=base.source,
        length=length,
        chat=chat,
        fraction=validation_fraction,
        max_validation_tokens=max_validation_tokens,
        seed=seed,
    )
    beyond = general_sequences(
        corpora.general,
        base.tokenizer,
        source=base.source,
        length=length,
        chat=chat,
        max_validation_tokens=max_validation_tokens,
        seed=seed,
    )
    layout, train, held, pad_id = rows.layout, rows.train, rows.held, pad_id_of(base.tokenizer)
    planned = max_steps or epochs * -(-len(train) // (batch_size * gradient_accumulation))
    with seeded(seed, threads):  # lora_A is drawn here
        adapted, begun = _begun(base, settings, sources, train, planned, seed)
    leaked = corpora.leaked + also_leaked
    contents: list[Any] = [[each.ids.tolist(), each.learnt.tolist()] for each in (*train, *held, *beyond)]
    if beyond:
        contents.append(len(held))
    if corpora.several:
        contents.append([each.source for each in (*train, *held)])
    call = call_of(arguments, base.identity, [len(train), contents, [source.sha256 for source in sources]])
    keeper = Keeper(out, call, resume=resume)
    fp32_before, teacher = None, None
    if rounded is not None:
        with rounded.floats():
            fp32_before = summarize(measure(adapted, held, pad_id=pad_id))
            teacher = Teacher(adapted, train, pad_id) if distill else None
    began = time.perf_counter()
    course = fit_language(
        adapted,
        train,
        held,
        LanguageSchedule(
            epochs=epochs,
            max_steps=max_steps,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup=warmup,
            batch_size=batch_size,
            accumulation=gradient_accumulation,
            checkpointing=gradient_checkpointing,
            seed=seed,
            patience=patience,
            threads=threads,
            bf16=bf16,
            temperature=mix_temperature,
        ),
        pad_id=pad_id,
        packed_length=length if (layout == "text" if packing is None else packing) else None,
        progress=progress if is_first() else False,
        keeper=keeper,
        teacher=teacher,
        report_to=callbacks_of(report_to, out) if is_first() else (),
        general=beyond,
    )
    deployed = None
    if rounded is not None:
        with rounded.floats():
            fp32_after = summarize(measure(adapted, held, pad_id=pad_id))
        deployed = Deployed(rounded.variant, rounded.layers, fp32_before, fp32_after)
    moved = change(course.before, course.after)
    gain = likelihood_gain(moved.nll, moved.standard_error)
    elsewhere = None
    if course.general is not None and corpora.general is not None:
        elsewhere = LanguageGeneral.of(corpora.general.source, len(beyond), *course.general)
    said = (
        leak_warning(leaked) if leaked else None,
        None if begun is None else begun.warning,
        course.stopped,
        gain_warning(gain, len(held)),
        f"training made it worse in other domains: {elsewhere}"
        if elsewhere is not None and elsewhere.gain.verdict == "worse"
        else None,
    )
    result = TrainedLanguageAdapter(
        folder=out,
        task=TASK,
        layout=layout,
        base_model=base.source,
        base_identity=base.identity,
        before=summarize(course.before),
        after=summarize(course.after),
        change=moved,
        seconds=time.perf_counter() - began,
        epochs=course.epochs,
        best_epoch=course.best_epoch,
        steps=course.steps,
        train_rows=len(train),
        train_tokens=course.tokens,
        validation_rows=len(held),
        validation_tokens=sum(sequence.targets for sequence in held),
        cut_rows=rows.cut,
        skipped_rows=rows.skipped,
        trainable_parameters=trainable(adapted),
        total_parameters=base.parameters,
        verdict=gain.verdict,
        warnings=tuple(filter(None, said)),
        start=begun,
        deployed=deployed,
        sources=language_scores(corpora.names, course.shares, train, held, course.before, course.after)
        if corpora.several
        else (),
        general=elsewhere,
    )
    record = language_record(result, course, length, arguments)
    write_checkpoint(adapted, out, record, {} if template is None else {_TEMPLATE_FILE: template})
    keeper.done()
    return result


def _begun(
    base: BaseModel, settings: Settings, sources: Sequence[Source], train: Sequence[Tokens], planned: int, seed: int
) -> tuple[Any, StartedFrom | None]:
    """The base with a new adapter on it or with the nearest of ``sources``, and what to say of that."""
    from .adapt import adapt
    from .encode import limit
    from .perplexity import measure, summarize

    if not sources:
        return adapt(base, replace(settings, targets=_targets(base, settings)), "CAUSAL_LM", steps=planned), None
    looked_at = limit(train, _NEAREST_TOKENS, seed)
    pad_id = pad_id_of(base.tokenizer)
    source, begun = nearest(
        base,
        sources,
        (),
        "CAUSAL_LM",
        lambda network: summarize(measure(network, looked_at, pad_id=pad_id)).nll,
        "nats a token on training rows",
    )
    adapted, _ = started(base, source, (), "CAUSAL_LM")
    return adapted, replace(begun, head=True)


def _targets(base: BaseModel, settings: Settings) -> str | tuple[str, ...] | None:
    from .base import resolve_targets

    if settings.targets is None or takes_norms(settings.method):
        return settings.targets  # the method's own, which never are embedding or head
    given = list(settings.targets) if isinstance(settings.targets, tuple) else settings.targets
    resolved = resolve_targets(base, given)
    wanted = resolved if isinstance(resolved, str) else tuple(resolved)
    head = base.model.get_output_embeddings()
    if isinstance(wanted, str) or head is None or not base.model.config.tie_word_embeddings:
        return wanted
    tied = [name for name, module in base.model.named_modules() if module in (head, base.model.get_input_embeddings())]
    if hit := [name for name in tied if any(name == t or name.endswith(f".{t}") for t in wanted)]:
        raise InputError(
            f"{base.source}: {' and '.join(hit)} cannot be adapted: embedding and head share one weight, and merging an "
            "adapter of one would change the other. Leave it out of --target-modules"
        )
    return wanted
