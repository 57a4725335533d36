"""``capture``: a base model as an ONNX graph that was checked against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ..adapters.folder_text import FolderText
from ..errors import CaptureError, EdgepeftError, InputError
from .base import Base
from .captured import Captured
from .head import own_head
from .load import Loaded, load_model
from .missing import some
from .replicate import LayerMap
from .routes.traced import trace
from .task import SPEECH
from .tied import output_head, tied_linears


def _attempts(onnx: str | Path | None, task: str) -> list[tuple[str, Callable[[Loaded], Captured]]]:
    if onnx is not None:
        if task == "text-generation":
            from .routes.given_causal import open_existing_causal

            return [("existing", lambda loaded: open_existing_causal(Path(onnx), loaded))]
        from .routes.given import open_existing

        return [("existing", lambda loaded: open_existing(Path(onnx), loaded))]
    if task == "text-generation":
        from .routes.mobius import build
        from .routes.traced_causal import trace_causal

        return [("mobius", build), ("traced", trace_causal)]
    if task in {"text2text-generation", SPEECH}:
        from .routes import traced_seq2seq as seq2seq

        return [
            ("traced+fused", lambda loaded: seq2seq.build(loaded, fusions=True)),
            ("traced", lambda loaded: seq2seq.build(loaded, fusions=False)),
        ]
    return [
        ("traced+fused", lambda loaded: trace(loaded, fusions=True)),
        ("traced", lambda loaded: trace(loaded, fusions=False)),
    ]


#: Tokens of context a language model's bundle has, unless more are asked for.
CONTEXT = 8192


def capped(loaded: Loaded, wanted: int | None, announce: Callable[[str], None]) -> Loaded:
    """``loaded`` with the context that was asked for; see :func:`capture`."""
    own = loaded.max_length
    if wanted is not None and own is not None and wanted > own:
        raise InputError(f"--max-length {wanted}: {loaded.source} has a context of {own} tokens")
    if wanted is None and loaded.task == "text-generation" and (own is None or own > CONTEXT):
        wanted = CONTEXT
        announce(f"context limited to {CONTEXT} of the model's {own} tokens; --max-length asks for more")
    return loaded if wanted is None else replace(loaded, max_length=wanted)


def announce_gaps(loaded: Loaded, announce: Callable[[str], None]) -> None:
    """Say by name which parts the checkpoint lacks, and which of its weights the model does not use."""
    if loaded.part_of is not None:
        announce(
            f"{loaded.source} is a {loaded.part_of} model: its language part is exported, images and sound are not read"
        )
    if loaded.fresh:
        announce(f"the checkpoint holds no {some(loaded.fresh)}: zero until an adapter brings them")
    if loaded.unexpected:
        announce(f"not used for {loaded.task}: {some(loaded.unexpected)}, which the checkpoint also holds")


def capture(
    source: str | Path,
    *,
    task: str | None = None,
    peft_task: str | None = None,
    onnx: str | Path | None = None,
    max_length: int | None = None,
    layers: LayerMap = (),
    heads: Collection[str] = (),
    pad_token: str | int | None = None,
    texts: Mapping[str, FolderText] = MappingProxyType({}),
    tasks: Sequence[str] = (),
    announce: Callable[[str], None] = lambda message: None,
) -> Base:
    """Capture a base model as ONNX.

    Routes are tried from the fastest graph to the plainest. A route whose outputs differ from PyTorch's by more than
    ``TOLERANCE`` (1e-4, relative to the largest output where that is above 1) is dropped.

    Args:
        source: A folder or a Hugging Face id.
        task: The task, as Hugging Face names it (``"text-classification"``); by default inferred from ``peft_task`` and the
            model's configuration.
        peft_task: The task type that an adapter's checkpoint names (``"SEQ_CLS"``).
        onnx: An ONNX file of the same base that was exported elsewhere. It is used instead of tracing.
        max_length: The longest context of a language model in tokens; its rotary tables grow with it. By default ``CONTEXT``
            (8192), or the model's own where that is shorter.
        layers: Ranges ``[start, end)`` of layers that the base is rebuilt from, as ``layer_replication`` of an adapter asks.
        heads: Parameters of heads that adapters without a task type bring, from which the task of a bare encoder is inferred.
        tasks: Several tasks that the base is to serve, each with a head behind one encoder; ``task`` is left out then.
        pad_token: Of a classifier over a decoder that names none: the padding token, by text or number. By default what its
            tokenizer says, else what ``texts`` say.
        texts: What adapters' folders say about text, by name.
        announce: Is called with a line of text for each route that was dropped and each limit that was chosen.

    Returns:
        The graph, the parameters by Hugging Face name (float32, PyTorch's layout) and where in the graph they lie. An
        encoder-decoder has a second graph in ``decoder``.

    Raises:
        CaptureError: No route gives PyTorch's outputs.
        InputError: There is no such model or task, or the model has no context of ``max_length`` tokens.

    Example:
        >>> base = capture("org/model", task="text-classification")
        >>> base.weight("classifier.weight").shape
        (2, 384)
    """
    if tasks:
        return _capture_shared(source, tasks, onnx=onnx, layers=layers, announce=announce)
    loaded = capped(
        load_model(
            source,
            task=task,
            peft_task=peft_task,
            layers=layers,
            heads=heads,
            pad_token=pad_token,
            texts=texts,
            announce=announce,
        ),
        max_length,
        announce,
    )
    announce_gaps(loaded, announce)
    return _captured(loaded, onnx, announce)


def _capture_shared(
    source: str | Path,
    tasks: Sequence[str],
    *,
    onnx: str | Path | None,
    layers: LayerMap,
    announce: Callable[[str], None],
) -> Base:
    """A base of several tasks."""
    from .shared import load_shared

    if onnx is not None or layers:
        raise InputError(
            f"a base for {', '.join(tasks)} is traced with the heads of all of them: --onnx and layer_replication have no "
            "place in it"
        )
    shared = load_shared(source, tasks)
    announce_gaps(shared.loaded, announce)
    base = _captured(shared.loaded, None, announce)
    return replace(base, tasks=shared.tasks, labels=None)


def _captured(loaded: Loaded, onnx: str | Path | None, announce: Callable[[str], None]) -> Base:
    failures = []
    for name, attempt in _attempts(onnx, loaded.task):
        try:
            captured = attempt(loaded)
        except EdgepeftError as error:
            failures.append(f"{name}: {error}")
            announce(f"capture route {name} dropped: {error}")
            continue
        return base_of(loaded, captured, name)
    raise CaptureError(
        f"{loaded.source}: no route captures this base ({type(loaded.model).__name__}) correctly. "
        + " | ".join(failures)
    )


def base_of(loaded: Loaded, captured: Captured, route: str) -> Base:
    """A captured model with what the rest of the package needs to know of it."""
    config = loaded.model.config
    head = own_head(config, loaded.task, captured.weights)
    return Base(
        graph=captured.graph,
        source=loaded.source,
        task=loaded.task,
        config=config.to_dict(),
        architecture=type(loaded.model).__name__,
        labels=head.labels,
        identity=loaded.identity,
        fresh=loaded.fresh,
        weights=captured.weights,
        locations=captured.locations,
        captured_by=route,
        max_length=loaded.max_length,
        files=loaded.files,
        embedding=loaded.embedding,
        positions=loaded.positions,
        reference=loaded.model,
        tied=tied_linears(loaded.model),
        head=output_head(loaded.model) if loaded.writes else None,
        parity=captured.parity,
        decoder=captured.decoder,
        layers=loaded.layers,
        spilled=captured.spilled,
        variant=captured.variant,
        matched=captured.matched,
        problem_type=head.problem_type,
        activation=head.activation,
    )
