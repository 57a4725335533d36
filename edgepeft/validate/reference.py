"""The PyTorch side of a comparison: the base with one adapter, as PEFT runs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..adapters.checkpoint import Checkpoint, Source, read_checkpoint
from ..adapters.folder_text import FolderText
from ..adapters.read import method_of
from ..adapters.through_peft.load import ask_for_task, fit_heads, wrap
from ..base.load import check_source, quiet
from ..errors import InputError, MissingExtraError

#: Which numbers a base's PyTorch model is to compute with, by parameter name; the others stay its own.
Rounded = Callable[[Any], Mapping[str, np.ndarray]]


def check_base(base: str) -> None:
    """:class:`InputError` where the base to compare with is not to be had, with the way out."""
    try:
        import torch  # noqa: F401 - asked for here, before adapters are read, so that the message names the extra

        check_source(base)
    except ImportError as error:
        raise MissingExtraError(f"comparing with PEFT needs: pip install 'edgepeft[export]' ({error})") from error
    except InputError as error:
        raise InputError(
            f"cannot compare with PEFT: {str(error).rstrip('.')}. Say where the base is with --model, or leave the comparison "
            "out with --no-reference"
        ) from error


def peft_model(
    base: str,
    adapter: Source,
    *,
    task: str,
    num_labels: int | None,
    module: Any | None = None,
    rounded: Rounded | None = None,
    pad: int | None = None,
) -> Any:
    """A fresh PEFT model in fp32 eval mode. ``num_labels`` is the width of the adapter's head, where it has one.

    ``module`` is the base where it is loaded already: it is copied instead of read again. ``rounded`` says which numbers of
    the base to compute with in place of its own. ``pad`` is the padding token where the base names none.
    """
    try:
        import optimum.exporters.tasks  # noqa: F401 - asked for here, so that the message names the extra

        from ..base.quantized_reference import replace_parameters
    except ImportError as error:
        raise MissingExtraError(f"comparing with PEFT needs: pip install 'edgepeft[export]' ({error})") from error
    checkpoint = read_checkpoint(adapter)
    # A base with a head of its own may have another width than the adapter's, which takes its place.
    options = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    with quiet():
        # PEFT repeats layers when it loads an adapter with layer_replication, where ``module`` has them repeated already.
        if module is None or checkpoint.config.get("layer_replication"):
            model = _base_model(base, task, options, checkpoint.text, pad)
        else:
            model = copy.deepcopy(module)
            fit_heads(model, checkpoint)
        numbers = rounded(model) if rounded is not None else {}
        wrapped = wrap(model, checkpoint)
    ask_for_task(wrapped, checkpoint.task)
    # Afterwards: checkpoints may bring the base's own embedding and head, which PEFT puts back.
    replace_parameters(wrapped.get_base_model(), numbers)
    return called(wrapped.eval(), checkpoint)


def _base_model(base: str, task: str, options: Mapping[str, Any], text: FolderText, pad: int | None) -> Any:
    """The base as it is captured for a task: of a multimodal model the language part."""
    import torch
    from transformers import AutoConfig

    from ..base.language_part import is_multimodal, load_language_part
    from ..base.load import base_text, float_options
    from ..base.pad_token import needs_pad_token, settle_pad_token
    from ..base.remote_code import trusted
    from ..base.sources import embeds_texts, model_class, model_source
    from ..base.tokenizer_files import model_files

    where = model_source(base)
    config = AutoConfig.from_pretrained(where, trust_remote_code=trusted())
    if task == "text-generation" and is_multimodal(config):
        return load_language_part(where, config)[0]
    auto = model_class(config, task, sentence=embeds_texts(base))
    unpacked = float_options(base, config)
    model = auto.from_pretrained(where, dtype=torch.float32, trust_remote_code=trusted(), **options, **unpacked)
    if needs_pad_token(model.config, task):
        said = base_text(model_files(where, base, texts=True), base)
        settle_pad_token(model.config, base, {base: said, "the adapter": text}, pad)
    return model


def called(wrapped: Any, checkpoint: Checkpoint) -> Any:
    """What is called to run PEFT's model with every input: its own ``forward`` for questions drops ``token_type_ids`` (0.21)."""
    questions = checkpoint.config.get("task_type") == "QUESTION_ANS" and not method_of(checkpoint).virtual
    return wrapped.get_base_model() if questions else wrapped


@contextmanager
def peft_reference(
    base: str,
    adapter: Source,
    *,
    task: str,
    num_labels: int | None,
    module: Any | None = None,
    rounded: Rounded | None = None,
    pad: int | None = None,
) -> Iterator[Any]:
    """A PEFT model in fp32 eval mode for as long as it is needed.

    ``module`` is the base where it is loaded already: an adapter that leaves its numbers alone is put onto it and taken
    off again, any other onto a copy of it. ``rounded`` is as for :func:`peft_model`.
    """
    checkpoint = read_checkpoint(adapter)
    alone = method_of(checkpoint).leaves_base_alone
    beside = alone is not None and alone(checkpoint.config)
    if module is None or num_labels is not None or rounded is not None or not beside:
        yield peft_model(base, checkpoint, task=task, num_labels=num_labels, module=module, rounded=rounded, pad=pad)
        return
    with quiet():
        wrapped = wrap(module, checkpoint)
    try:
        yield called(wrapped.eval(), checkpoint)
    finally:
        wrapped.unload()


def head_width(adapter: Source, labels: Sequence[str] | None) -> int | None:
    """How many labels the adapter's head has: from what is known of it, else from edgepeft's own record."""
    if labels is None:
        labels = read_checkpoint(adapter).labels
    return None if labels is None else len(labels)
