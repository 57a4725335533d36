"""Bake: a model as PEFT runs it, unmerged, traced as one graph for one adapter.

For methods whose change is no change of weights (a router, gated prompts, virtual tokens over encoders): nothing is
lowered and nothing can be swapped, but what PEFT computes runs on the device. Causal language models keep their cache.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...adapters.checkpoint import Checkpoint, Source, read_checkpoint
from ...adapters.read import method_of
from ...adapters.through_peft.load import ask_for_task, check_arrived, fit_heads, wrap
from ...errors import CaptureError, EdgepeftError, InputError
from ..base import Base
from ..capture import announce_gaps, capped
from ..head import own_head
from ..load import Loaded, load_model, sample_batches
from ..markers import parameters_of
from ..parity import graph_causal_parity, parity
from ..routes.traced import export_graph
from ..routes.traced_causal import export_causal
from .causal import with_layers, with_states
from .traceable_layers import traceable


def _peft(loaded: Loaded, checkpoint: Checkpoint) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of transformers' deprecations
        fit_heads(loaded.model, checkpoint)
        wrapped = wrap(loaded.model, checkpoint)
        check_arrived(checkpoint, wrapped)
    ask_for_task(wrapped, checkpoint.task)
    return wrapped


def _plain(wrapped: Any) -> Any:
    """PEFT's model as a module that takes tokens by name, which is what the exporter reads signatures from."""
    import torch

    class Baked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = wrapped
            self.config = wrapped.config

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **types)

    return Baked().eval()


def bake(
    source: str | Path,
    adapter: Source,
    *,
    task: str | None = None,
    peft_task: str | None = None,
    max_length: int | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Base:
    """The model ``source`` with the PEFT checkpoint ``adapter`` traced in; its ``weights`` are PEFT's own parameters.

    Its ``reference`` is the base without the adapter. ``max_length`` caps a language model's context in tokens. Raises
    :class:`CaptureError` where the method cannot be traced, or the graph computes something else than PEFT.
    """
    checkpoint = read_checkpoint(adapter)
    method = method_of(checkpoint)
    loaded = load_model(source, task=task, peft_task=peft_task)
    announce_gaps(loaded, announce)
    causal = loaded.task == "text-generation"
    if "input_ids" not in loaded.inputs or (loaded.task.endswith("-generation") and not causal):
        raise InputError(
            f"--mode bake traces language models and models that read tokens once (classification, features, fill-mask); "
            f"{loaded.source} is for {loaded.task}"
        )
    loaded = capped(loaded, max_length, announce)
    untouched = copy.deepcopy(loaded.model)  # PEFT puts its layers into the model it is given
    before = with_states(loaded, checkpoint) if causal and method.before_sequence(checkpoint) else None
    reference = _peft(loaded, checkpoint)
    if not causal:
        # Virtual tokens take places of the positions that a model has.
        taken = int(checkpoint.config["num_virtual_tokens"]) if method.virtual else 0
        room = None if loaded.max_length is None else loaded.max_length - taken
        plain = replace(loaded, model=_plain(reference), fresh=(), max_length=room)
        reference = plain.model
    elif before is not None:
        plain = before
    else:
        plain = replace(loaded, model=with_layers(reference, method.tracing, checkpoint.task), fresh=())
    judged = replace(loaded, model=reference, max_length=plain.max_length)
    failures = []
    for fusions in (True, False):
        try:
            with traceable(method.tracing, lambda: _run(judged)):
                graph = (export_causal if causal else export_graph)(plain, fusions=fusions)
            difference = (graph_causal_parity if causal else parity)(graph, judged)
            return _base(loaded, untouched, plain, graph, difference)
        except EdgepeftError as error:
            failures.append(str(error))
            announce(f"capture route {'traced+fused' if fusions else 'traced'} dropped: {error}")
    raise CaptureError(f"{checkpoint.source} over {source} cannot be baked. " + " | ".join(dict.fromkeys(failures)))


def _run(loaded: Loaded) -> None:
    """One run of the model on real numbers."""
    import torch

    sample = sample_batches(loaded, shapes=((2, 8),))[0]
    options = {"use_cache": False} if loaded.task == "text-generation" else {}
    loaded.model(**{name: torch.from_numpy(array) for name, array in sample.items()}, **options)


def _base(loaded: Loaded, untouched: Any, plain: Loaded, graph: ir.Model, difference: float) -> Base:
    labels = None
    said = own_head(plain.model.config, loaded.task, (name for name, _ in plain.model.named_parameters()))
    if loaded.task.endswith("-classification"):
        names = plain.model.config.id2label
        logits = next(value for value in graph.graph.outputs if value.name == "logits")
        count = logits.shape[-1] if logits.shape is not None else len(names)
        labels = tuple(names[i] if count == len(names) else f"LABEL_{i}" for i in range(int(str(count))))
    return Base(
        graph=graph,
        source=loaded.source,
        task=loaded.task,
        config=plain.model.config.to_dict(),
        architecture=type(untouched).__name__,
        labels=labels,
        identity=loaded.identity,
        fresh=(),
        weights=parameters_of(plain.model),
        locations={},
        captured_by="baked",
        max_length=plain.max_length,
        files=loaded.files,
        embedding=loaded.embedding,
        positions=loaded.positions,
        reference=untouched,
        tied={},
        head=None,
        parity=difference,
        problem_type=said.problem_type,
        activation=said.activation,
    )
