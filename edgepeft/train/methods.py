"""Which method is trained: every one of PEFT's that can ship, a head alone, or (to compare with) the whole network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..adapters.methods.registry import METHODS
from ..adapters.methods.training import USUAL, Training
from ..errors import InputError, UnsupportedAdapterError
from ..spelling import did_you_mean
from ..strict_json import read_object

if TYPE_CHECKING:
    from torch import nn

HEAD_ONLY = "head-only"
FULL = "full"

#: Names of our own for methods of PEFT with options.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
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

#: What an adapter's config says beyond options of its method.
_OF_AN_ADAPTER = frozenset(
    {
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    }
)

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
        if training_of(peft_type(self.method)).modules == "usual" and self.method not in {HEAD_ONLY, FULL}:
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
    return _RATES[kind] if kind in _RATES else training_of(kind).rate


def training_of(kind: str) -> Training:
    """How what PEFT calls ``kind`` is trained; what is no method of PEFT's as is usual."""
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
    if name in VARIANTS:
        return VARIANTS[name][0]
    found = METHODS.get(name.replace("-", "_").upper())
    if found is None:
        known = [*VARIANTS, HEAD_ONLY, *(each.lower() for each in METHODS)]
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


def parse_peft(values: Sequence[str], method: str = "lora") -> dict[str, Any]:
    """``key=value`` pairs, values as JSON where they are, else as text; and JSON files of options, such as an adapter's config.

    Raises:
        InputError: An entry is neither, or a file is of another method.

    Example:
        >>> parse_peft(["r=4", "init_lora_weights=pissa"])
        {'r': 4, 'init_lora_weights': 'pissa'}
    """
    found: dict[str, Any] = {}
    for entry in values:
        if "=" not in entry and entry.lower().endswith(".json"):
            found |= _config_file(Path(entry), method)
            continue
        key, equals, value = entry.partition("=")
        if not equals or not key.strip():
            raise InputError(
                f"--peft {entry!r}: expected key=value, such as --peft init_lora_weights=pissa, or FILE.json"
            )
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value
    return found


def _config_file(file: Path, method: str) -> dict[str, Any]:
    """The options of a JSON file; what says of which base and task an adapter is, is left out, and what is not set."""
    read = read_object(file, advice="a JSON object of options of PEFT's config")
    kind = peft_type(method)
    if (theirs := str(read.get("peft_type") or kind)) != ("LORA" if kind == HEAD_ONLY else kind):
        raise InputError(f"--peft {file} is a config of {theirs.lower()}, and --method is {method}; give one of them")
    return {name: value for name, value in read.items() if name not in _OF_AN_ADAPTER and value is not None}


def takes_norms(method: str) -> bool:
    """Whether the modules of a method are norms, and not linear layers."""
    return training_of(peft_type(method)).modules == "norms"


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
