"""Which method is trained: every one of PEFT's that can ship, a head alone, or (to compare with) the whole network."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..adapters.methods.registry import METHODS
from ..adapters.methods.training import USUAL, Training
from ..errors import InputError, UnsupportedAdapterError
from ..spelling import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from .base import BaseModel

HEAD_ONLY = "head-only"
FULL = "full"

#: Names of our own for methods of PEFT with options.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LORA", {"use_dora": True}),
    "rslora": ("LORA", {"use_rslora": True}),
    "pissa": ("LORA", {"init_lora_weights": "pissa"}),
    "ln": (next(name for name, method in METHODS.items() if method.training.modules == "norms"), {}),
}
#: Usual learning rates of what is no method of PEFT: a head wants larger steps than LoRA, all weights at once a tenth of its
#: (LoRA Without Regret, 2025).
_RATES = {HEAD_ONLY: 1e-2, FULL: 1e-4}

#: More modules than this are counted in tables, not named.
_NAMED_TARGETS = 4

Task = Literal["SEQ_CLS", "CAUSAL_LM"]


@dataclass(frozen=True)
class Settings:
    """What is trained, and how fast: one point that a search may try.

    ``targets`` are module names, ``"all-linear"`` or ``None`` for the usual ones; ``ranks`` gives ranks to modules by their whole
    names, over ``rank``, and then only those modules are adapted. ``alpha`` is ``None`` for twice the rank.
    """

    method: str = "lora"
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | tuple[str, ...] | None = None
    ranks: tuple[tuple[str, int], ...] = ()
    peft: tuple[tuple[str, Any], ...] = ()
    learning_rate: float | None = None

    @property
    def rate(self) -> float:
        """The learning rate: as given, or the method's usual one."""
        return usual_rate(self.method) if self.learning_rate is None else self.learning_rate

    def describe(self) -> str:
        """In a few words, for tables."""
        where = (
            "chosen modules"
            if self.ranks
            else self.targets
            if not isinstance(self.targets, tuple)
            else ",".join(self.targets)
            if len(self.targets) <= _NAMED_TARGETS
            else f"{len(self.targets)} modules"
        )
        parts = [self.method]
        if _training(peft_type(self.method)).modules == "usual" and self.method not in {HEAD_ONLY, FULL}:
            parts.append(
                f"r={self.rank}"
                if not self.ranks
                else f"r={min(r for _, r in self.ranks)}..{max(r for _, r in self.ranks)}"
            )
        if where:
            parts.append(where)
        return f"{' '.join(parts)}, lr {self.rate:.2g}"


def usual_rate(method: str) -> float:
    """The learning rate of a classifier's method where none is asked for."""
    kind = peft_type(method)
    return _RATES[kind] if kind in _RATES else _training(kind).rate


def _training(kind: str) -> Training:
    return METHODS[kind].training if kind in METHODS else USUAL


def peft_type(method: str) -> str:
    """PEFT's name of a method, ``head-only`` or ``full``.

    Raises:
        InputError: There is no such method.
        UnsupportedAdapterError: It cannot ship, for the reason that is named.
    """
    name = method.strip().lower()
    if name in {HEAD_ONLY, FULL}:
        return name
    if name in _VARIANTS:
        return _VARIANTS[name][0]
    found = METHODS.get(name.replace("-", "_").upper())
    if found is None:
        known = [*_VARIANTS, HEAD_ONLY, *(each.lower() for each in METHODS)]
        raise InputError(f"unknown method {method!r}{did_you_mean(name, known)}; there are {', '.join(sorted(known))}")
    if found.mode == "refuse" and not found.virtual:
        raise UnsupportedAdapterError(f"{found.title} cannot be trained for a bundle: {found.reason}")
    return found.peft_type


def shipping(method: str, task: Task) -> str:
    """How what is trained ships: ``swap``, ``merge`` or ``bake``; empty for ``full``, which is no adapter."""
    kind = peft_type(method)
    if kind in {HEAD_ONLY, FULL}:
        return "swap" if kind == HEAD_ONLY else ""
    entry = METHODS[kind]
    if entry.virtual and task == "CAUSAL_LM":
        return "swap"
    return {"svd": "swap or merge"}.get(entry.mode, entry.mode)


def check_shipping(method: str, task: Task, wanted: str | None) -> None:
    """Refuse a method that cannot ship, or not as ``wanted`` (``swap``, ``merge``, ``bake``), with the reason.

    Raises:
        UnsupportedAdapterError: It cannot.
    """
    kind = peft_type(method)
    if kind == FULL:
        raise UnsupportedAdapterError(
            "full fine-tuning changes every weight: it is a model of its own and no adapter. Compare with it "
            "(--compare lora,full), and export a model that was trained whole as a base"
        )
    if kind == HEAD_ONLY:
        if task == "CAUSAL_LM":
            raise UnsupportedAdapterError("head-only is for classification: a language model's head is its base's")
        return
    entry, ships = METHODS[kind], shipping(method, task)
    if entry.training.language_only and task != "CAUSAL_LM":
        raise UnsupportedAdapterError(
            f"{entry.title} cannot ship a classifier: PEFT offers it for language models only"
        )
    if entry.tasks:
        raise UnsupportedAdapterError(
            f"{entry.title} learns several tasks at once from rows that say which task they are of, and these rows do not; train "
            "it with PEFT itself and export the checkpoint"
        )
    if ships == "refuse":
        raise UnsupportedAdapterError(f"{entry.title} cannot ship for this task: {entry.reason}")
    if wanted == "swap" and "swap" not in ships:
        raise UnsupportedAdapterError(f"{entry.title} cannot be swapped, only shipped as {ships}: {entry.reason}")
    if wanted == "merge" and ships == "bake":
        raise UnsupportedAdapterError(f"{entry.title} cannot be merged, only shipped as bake: {entry.reason}")


def parse_peft(values: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs; values as JSON where they are, else as text.

    Example:
        >>> parse_peft(["r=4", "init_lora_weights=pissa"])
        {'r': 4, 'init_lora_weights': 'pissa'}
    """
    found: dict[str, Any] = {}
    for entry in values:
        key, equals, value = entry.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--peft {entry!r}: expected key=value, such as --peft init_lora_weights=pissa")
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value
    return found


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
    if "exclude_modules" in fields and kind != HEAD_ONLY:  # PEFT warns of exclusions from nothing
        options["exclude_modules"] = list(base.fresh) or None
    if "target_modules" in fields:
        options["target_modules"] = _targets(base, settings, kind, task)
    if "r" in fields and _training(kind).ranked:
        options["r"] = settings.rank
    alpha = 2.0 * settings.rank if settings.alpha is None else settings.alpha
    options |= {"lora_alpha": alpha} if "lora_alpha" in fields else {"alpha": alpha} if "alpha" in fields else {}
    if kind in {"LORA", HEAD_ONLY}:
        options["lora_dropout"] = settings.dropout
        if settings.ranks:
            options["rank_pattern"] = dict(settings.ranks)
            # The same scaling at every rank, or the small ones would learn faster than the large ones.
            options["alpha_pattern"] = {name: rank * alpha / settings.rank for name, rank in settings.ranks}
    if _training(kind).plans_ranks:
        options |= {
            "init_r": max(1, round(1.5 * settings.rank)),
            "target_r": settings.rank,
            "total_step": max(1, steps),
        }
    if "num_virtual_tokens" in fields:
        options["num_virtual_tokens"] = 20
    given = {**_VARIANTS.get(settings.method.strip().lower(), ("", {}))[1], **dict(settings.peft)}
    if unknown := sorted(set(given) - fields):
        raise InputError(
            f"{settings.method} has no option {unknown[0]!r}{did_you_mean(unknown[0], fields)}; it has {', '.join(sorted(fields))}"
        )
    try:
        return made(**{**options, **given})
    except (ValueError, TypeError) as error:
        raise InputError(f"{settings.method}: {error}") from error


def _targets(base: BaseModel, settings: Settings, kind: str, task: Task) -> Any:
    from .base import resolve_targets

    if kind == HEAD_ONLY:
        from peft.tuners.tuners_utils import DUMMY_TARGET_MODULES

        return DUMMY_TARGET_MODULES
    if settings.ranks:
        return [name for name, _ in settings.ranks]
    if settings.targets is None and _training(kind).modules == "own":
        return None  # PEFT knows which of them are feed-forward
    if settings.targets is None and _training(kind).modules == "norms":
        return norms(base)
    if settings.targets is None and task == "CAUSAL_LM":
        return "all-linear"
    wanted = list(settings.targets) if isinstance(settings.targets, tuple) else settings.targets
    return wanted if _training(kind).modules == "norms" else resolve_targets(base, wanted)


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


def takes_norms(method: str) -> bool:
    """Whether the modules of a method are norms, and not linear layers."""
    return _training(peft_type(method)).modules == "norms"


def trainable(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def settings_of(
    method: str,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | Sequence[str] | None,
    flags: Mapping[str, bool],
    peft: Mapping[str, Any] | None,
    learning_rate: float | None,
) -> Settings:
    """Settings from the arguments of a training function; ``flags`` are options of LoRA that have arguments of their own."""
    given = {**{name: True for name, on in flags.items() if on}, **dict(peft or {})}
    return Settings(
        method=method,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        targets=targets if targets is None or isinstance(targets, str) else tuple(targets),
        peft=tuple(given.items()),
        learning_rate=learning_rate,
    )
