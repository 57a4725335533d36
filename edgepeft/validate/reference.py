"""The PyTorch side of a comparison: the base with one adapter, as PEFT runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.checkpoint import read_checkpoint, split_task
from ..adapters.peft_config import read_record
from ..adapters.through_peft.load import ask_for_task, wrap
from ..base.load import check_source, quiet
from ..errors import InputError, MissingExtraError

#: Which numbers a base's PyTorch model is to compute with, by parameter name; the others stay its own.
Rounded = Callable[[Any], Mapping[str, np.ndarray]]


def check_base(base: str) -> None:
    """:class:`InputError` where the base to compare with is not to be had, with the way out."""
    try:
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
    adapter: str | Path,
    *,
    task: str,
    num_labels: int | None,
    rounded: Rounded | None = None,
) -> Any:
    """A fresh PEFT model in fp32 eval mode. ``num_labels`` is the width of the adapter's head, where it has one.

    ``rounded`` says which numbers of the base to compute with in place of its own.
    """
    try:
        import torch
        from optimum.exporters.tasks import TasksManager

        from ..base.quantized_reference import replace_parameters
    except ImportError as error:
        raise MissingExtraError(f"comparing with PEFT needs: pip install 'edgepeft[export]' ({error})") from error
    checkpoint = read_checkpoint(adapter)
    auto = TasksManager.get_model_class_for_task(task)
    # A base with a head of its own may have another width than the adapter's, which takes its place.
    options = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    with quiet():
        model = auto.from_pretrained(base, dtype=torch.float32, **options)
        numbers = rounded(model) if rounded is not None else {}
        wrapped = wrap(model, checkpoint)
    ask_for_task(wrapped, checkpoint.task)
    # Afterwards: checkpoints may bring the base's own embedding and head, which PEFT puts back.
    replace_parameters(wrapped.get_base_model(), numbers)
    return wrapped.eval()


def _leaves_the_base_alone(adapter: str | Path) -> bool:
    """Whether PEFT adds this adapter beside the base's numbers and changes none of them when it loads it."""
    config = read_checkpoint(adapter).config
    inits = config.get("init_lora_weights", True)
    return (
        config.get("peft_type") == "LORA"
        and (isinstance(inits, bool) or inits == "gaussian")
        and config.get("bias", "none") == "none"
        and not any(
            config.get(key)
            for key in ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters")
        )
    )


@contextmanager
def peft_reference(
    base: str,
    adapter: str | Path,
    *,
    task: str,
    num_labels: int | None,
    module: Any | None = None,
    rounded: Rounded | None = None,
) -> Iterator[Any]:
    """A PEFT model in fp32 eval mode for as long as it is needed.

    ``module`` is the base where it is loaded already: an adapter that leaves its numbers alone is put onto it and taken
    off again, which for a language model saves loading it once more. ``rounded`` is as for :func:`peft_model`.
    """
    if module is None or num_labels is not None or rounded is not None or not _leaves_the_base_alone(adapter):
        yield peft_model(base, adapter, task=task, num_labels=num_labels, rounded=rounded)
        return
    with quiet():
        wrapped = wrap(module, read_checkpoint(adapter))
    try:
        yield wrapped.eval()
    finally:
        wrapped.unload()


def head_width(adapter: str | Path, labels: Sequence[str] | None) -> int | None:
    """How many labels the adapter's head has: from what is known of it, else from edgepeft's own record."""
    if labels is not None:
        return len(labels)
    record = Path(split_task(adapter)[0]) / "edgepeft_adapter.json"
    if record.is_file():
        found = read_record(record).get("labels")
        return len(found) if found else None
    return None
