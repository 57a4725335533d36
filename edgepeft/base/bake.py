"""Bake: a model as PEFT runs it, unmerged, traced as one graph for one adapter.

For methods whose change is no change of weights (a router, virtual tokens): nothing is lowered and nothing can be swapped,
but what PEFT computes runs on the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..adapters.checkpoint import read_checkpoint
from ..adapters.delta import fit_heads
from ..errors import AdapterError, CaptureError, EdgepeftError, InputError
from .form import Base
from .load import Loaded, load_model
from .traced import Captured, trace


def _peft(loaded: Loaded, source: str | Path) -> Any:
    from peft import PeftModel

    checkpoint = read_checkpoint(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of transformers' deprecations
        try:
            fit_heads(loaded.model, checkpoint)
            return PeftModel.from_pretrained(loaded.model, str(checkpoint.path)).eval()
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AdapterError(f"PEFT cannot load {source} over {loaded.source}: {first}") from error


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
    adapter: str | Path,
    *,
    task: str | None = None,
    peft_task: str | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Base:
    """The model ``source`` with the PEFT checkpoint ``adapter`` traced in; its ``weights`` are PEFT's own parameters.

    Raises :class:`CaptureError` where the method cannot be traced, or the graph computes something else than PEFT.
    """
    loaded = load_model(source, task=task, peft_task=peft_task)
    if "input_ids" not in loaded.inputs or loaded.task.endswith("-generation"):
        raise InputError(
            f"--mode bake traces models that read tokens once (classification, features, fill-mask); {loaded.source} is for "
            f"{loaded.task}"
        )
    plain = replace(loaded, model=_plain(_peft(loaded, adapter)), fresh=())
    failures = []
    for fusions in (True, False):
        try:
            return _base(loaded, plain, trace(plain, fusions=fusions))
        except EdgepeftError as error:
            failures.append(str(error))
            announce(f"capture route {'traced+fused' if fusions else 'traced'} dropped: {error}")
    raise CaptureError(f"{adapter} over {source} cannot be baked. " + " | ".join(dict.fromkeys(failures)))


def _base(loaded: Loaded, plain: Loaded, captured: Captured) -> Base:
    labels = None
    if loaded.task.endswith("-classification"):
        names = plain.model.config.id2label
        logits = next(value for value in captured.graph.graph.outputs if value.name == "logits")
        count = logits.shape[-1] if logits.shape is not None else len(names)
        labels = tuple(names[i] if count == len(names) else f"LABEL_{i}" for i in range(int(str(count))))
    return Base(
        graph=captured.graph,
        source=loaded.source,
        task=loaded.task,
        config=plain.model.config.to_dict(),
        architecture=type(loaded.model).__name__,
        labels=labels,
        identity=loaded.identity,
        fresh=(),
        weights=captured.weights,
        locations=captured.locations,
        captured_by="baked",
        max_length=loaded.max_length,
        files=loaded.files,
        reference=plain.model,
        tied={},
        head=None,
        parity=captured.parity,
    )
