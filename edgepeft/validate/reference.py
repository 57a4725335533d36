"""The PyTorch side of a comparison: the base with one adapter, as PEFT runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..base.load import quiet
from ..errors import AdapterError, MissingExtraError


def peft_model(
    base: str,
    adapter: str | Path,
    *,
    task: str,
    num_labels: int | None,
    prepare: Callable[[Any], None] = lambda model: None,
) -> Any:
    """A fresh PEFT model in fp32 eval mode. ``num_labels`` is the width of the adapter's head, where it has one.

    ``prepare`` is given the base before the adapter is loaded over it.
    """
    try:
        import torch
        from optimum.exporters.tasks import TasksManager
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError(f"comparing with PEFT needs: pip install 'edgepeft[export]' ({error})") from error
    auto = TasksManager.get_model_class_for_task(task)
    # A base with a head of its own may have another width than the adapter's, which takes its place.
    options = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    with quiet():
        model = auto.from_pretrained(base, dtype=torch.float32, **options)
        prepare(model)
        try:
            wrapped = PeftModel.from_pretrained(model, str(adapter))
        except (RuntimeError, ValueError, KeyError) as error:
            raise AdapterError(
                f"PEFT cannot load {adapter} over {base}: {str(error).strip().splitlines()[0]}"
            ) from error
    return wrapped.eval()


def head_width(adapter: str | Path, labels: Sequence[str] | None) -> int | None:
    """How many labels the adapter's head has: from what is known of it, else from edgepeft's own record."""
    if labels is not None:
        return len(labels)
    record = Path(adapter) / "edgepeft_adapter.json"
    if record.is_file():
        found = json.loads(record.read_text(encoding="utf-8")).get("labels")
        return len(found) if found else None
    return None
