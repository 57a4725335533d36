"""What is trained, put on the network: PEFT's configuration from settings, and the modules it is for."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..spelling import did_you_mean
from .methods import FULL, HEAD_ONLY, VARIANTS, Settings, Task, peft_type, training_of

if TYPE_CHECKING:
    from torch import nn

    from .base import BaseModel


def adapt(base: BaseModel, settings: Settings, task: Task = "SEQ_CLS", *, steps: int = 0) -> nn.Module:
    """``base.model`` with what ``settings`` train; it is changed in place.

    Args:
        base: The network, with its head.
        settings: Method, rank, modules.
        task: What it is trained for.
        steps: Training steps to come, which AdaLoRA plans its ranks by.

    Raises:
        InputError: An option or module is none of the method's, or PEFT cannot make this method over this network.
    """
    kind = peft_type(settings.method)
    if kind == FULL:
        base.model.requires_grad_(True)
        return base.model
    return made_over(base, _config(base, settings, kind, task, steps), settings.method)


def made_over(base: BaseModel, config: Any, name: str) -> nn.Module:
    """``base.model`` with what PEFT's ``config`` says on it; ``name`` stands for it in messages.

    Raises:
        InputError: PEFT cannot make it over this network.
    """
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft 0.21 asks for a property that transformers 5.23 renamed, and LN tuning calls the layers it is for unsupported
        # (November 2026).
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        try:
            return get_peft_model(base.model, config)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            NotImplementedError,
            ImportError,
            RuntimeError,
        ) as error:
            raise InputError(f"PEFT cannot make {name} over {base.source}: {error}") from error


def _config(base: BaseModel, settings: Settings, kind: str, task: Task, steps: int) -> Any:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, TaskType

    made = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("LORA" if kind == HEAD_ONLY else kind)]
    fields = {each.name for each in dataclasses.fields(made)}
    options: dict[str, Any] = {"task_type": TaskType(task)}
    # PEFT adds these two names itself; given twice, they would be listed twice.
    fresh = [name for name in base.fresh if name not in {"classifier", "score"}]
    if base.fresh and "modules_to_save" not in fields:
        raise InputError(
            f"{settings.method} cannot save the new head of this classifier; train lora with --peft instead"
        )
    if "modules_to_save" in fields:
        options["modules_to_save"] = fresh
    if "target_modules" in fields:
        options["target_modules"] = _targets(base, settings, kind, task)
    if "exclude_modules" in fields and kind != HEAD_ONLY:  # PEFT warns of exclusions from nothing
        whole = _saved_whole(base) if task == "SEQ_CLS" and options.get("target_modules") == "all-linear" else []
        options["exclude_modules"] = [*base.fresh, *(name for name in whole if name not in base.fresh)] or None
    if "r" in fields and training_of(kind).ranked:
        options["r"] = settings.rank
    alpha = 2.0 * settings.rank if settings.alpha is None else settings.alpha
    options |= {"lora_alpha": alpha} if "lora_alpha" in fields else {"alpha": alpha} if "alpha" in fields else {}
    if kind in {"LORA", HEAD_ONLY}:
        options["lora_dropout"] = settings.dropout
        if settings.ranks:
            options["rank_pattern"] = dict(settings.ranks)
            # The same scaling at every rank, or the small ones would learn faster than the large ones.
            options["alpha_pattern"] = {name: rank * alpha / settings.rank for name, rank in settings.ranks}
    if training_of(kind).plans_ranks:
        options |= {
            "init_r": max(1, round(1.5 * settings.rank)),
            "target_r": settings.rank,
            "total_step": max(1, steps),
        }
    if "num_virtual_tokens" in fields:
        options["num_virtual_tokens"] = 20
    given = {**VARIANTS.get(settings.method.strip().lower(), ("", {}))[1], **dict(settings.peft)}
    if unknown := sorted(set(given) - fields):
        raise InputError(
            f"{settings.method} has no option {unknown[0]!r}{did_you_mean(unknown[0], fields)}; it has {', '.join(sorted(fields))}"
        )
    try:
        return made(**{**options, **given})
    except (ValueError, TypeError) as error:
        raise InputError(f"{settings.method}: {error}") from error


def _saved_whole(base: BaseModel) -> list[str]:
    """Modules that PEFT saves whole since their names end like a head's (DistilBERT's ``pre_classifier``), and yet adapts."""
    ends = ("classifier", "score")
    return [
        name for name, _ in base.model.named_modules() if name.endswith(ends) and name.rpartition(".")[2] not in ends
    ]


def _targets(base: BaseModel, settings: Settings, kind: str, task: Task) -> Any:
    from .base import resolve_targets

    if kind == HEAD_ONLY:
        from peft.tuners.tuners_utils import DUMMY_TARGET_MODULES

        return DUMMY_TARGET_MODULES
    if settings.ranks:
        return [name for name, _ in settings.ranks]
    if settings.targets is None and training_of(kind).modules == "own":
        return None  # PEFT knows which of them are feed-forward
    if settings.targets is None and training_of(kind).modules == "norms":
        return norms(base)
    if settings.targets is None and task == "CAUSAL_LM":
        return "all-linear"
    wanted = list(settings.targets) if isinstance(settings.targets, tuple) else settings.targets
    return wanted if training_of(kind).modules == "norms" else resolve_targets(base, wanted)


def norms(base: BaseModel) -> list[str]:
    """The last parts of the names of the network's norms: modules with one vector of weights whose class is called so."""
    found = {
        name.rpartition(".")[2]
        for name, module in base.model.named_modules()
        if "norm" in type(module).__name__.lower() and getattr(getattr(module, "weight", None), "ndim", 0) == 1
    }
    if not found:
        raise InputError(f"{base.source} has no norms to train")
    return sorted(found)
