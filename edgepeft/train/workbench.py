"""What several training runs share: a base loaded once, rows encoded once, and a fresh copy of the network for each run."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import Examples
from ..errors import DataError, InputError
from .adapt import adapt
from .batches import Row
from .methods import Settings
from .problem import Problem
from .source import Split
from .tokenizer import HubTokenizer

if TYPE_CHECKING:
    from torch import nn

    from .base import BaseModel
    from .loop import Course, Schedule

_DEFAULT_MAX_LENGTH = 128


@dataclass(frozen=True)
class Workbench:
    """A base with a head for the split's labels, and the split's rows as tokens. ``cut`` rows were too long.

    ``general`` are rows of other domains, to be measured on. ``known`` holds what several runs over the same frozen network share;
    ``bf16`` lets steps of trials compute in bfloat16.
    """

    base: BaseModel
    split: Split
    rows: tuple[Row, ...]
    held: tuple[Row, ...]
    cut: int
    general: tuple[Row, ...] = ()
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    bf16: bool = False

    @property
    def problem(self) -> Problem:
        """What is learnt."""
        return self.split.problem

    @property
    def width(self) -> int:
        """Numbers in the state of a token: the hidden size."""
        config = self.base.model.config.get_text_config()
        return int(getattr(config, "hidden_size", None) or self.base.model.get_input_embeddings().weight.shape[1])

    def fresh(self, settings: Settings, seed: int, *, steps: int = 0) -> nn.Module:
        """A copy of the base with what ``settings`` train, its new head drawn by ``seed``."""
        from .trainer import seeded

        with seeded(seed, None):
            base = replace(self.base, model=copy.deepcopy(self.base.model))
            redraw(base)
            return adapt(base, settings, steps=steps)

    def trained(self, settings: Settings, schedule: Schedule) -> tuple[nn.Module, Course, float]:
        """A :meth:`fresh` network after its training, what that did, and the seconds that it took."""
        from .loop import fit

        model = self.fresh(settings, schedule.seed, steps=schedule.epochs * -(-len(self.rows) // schedule.batch_size))
        start = time.perf_counter()
        mixed = replace(schedule, temperature=self.split.temperature)
        course = fit(model, self.base.tokenizer, self.rows, self.held, mixed, self.problem, progress=False)
        return model, course, time.perf_counter() - start


def open_workbench(model: str | Path, split: Split, max_length: int | None) -> Workbench:
    """Load ``model`` for the labels of ``split``, and encode its rows; its new head is drawn from torch's generator as it stands.

    Raises:
        InputError: The model cannot be loaded or cannot classify, or ``max_length`` is beyond what it takes.
        DataError: A text has no tokens.
    """
    from .base import load_base, token_limit

    base = load_base(model, split.labels, split.problem.kind)
    limit = token_limit(base.tokenizer, base.model.config)
    if max_length is not None and max_length > limit:
        raise InputError(f"max_length {max_length} is more than the {limit} tokens {base.source} can take")
    length = min(_DEFAULT_MAX_LENGTH, limit) if max_length is None else max_length
    rows, cut = encode(base.tokenizer, split.train, split.problem, length, split.train_sources)
    held, held_cut = encode(base.tokenizer, split.validation, split.problem, length, split.held_sources)
    general, general_cut = (
        ([], 0) if split.general is None else encode(base.tokenizer, split.general, split.problem, length)
    )
    return Workbench(base, split, tuple(rows), tuple(held), cut + held_cut + general_cut, tuple(general))


def encode(
    tokenizer: HubTokenizer, rows: Examples, problem: Problem, max_length: int, sources: Sequence[int] = ()
) -> tuple[list[Row], int]:
    """The rows as tokens, and how many rows were cut to ``max_length`` tokens; ``sources`` are those of the rows, of several."""
    if not len(rows):  # tokenizers take no empty list
        return [], 0
    inputs = (list(rows.texts),) if rows.pairs is None else (list(rows.texts), list(rows.pairs))
    whole = tokenizer(*inputs, truncation=False, verbose=False)["input_ids"]
    encoded = tokenizer(*inputs, truncation=True, max_length=max_length)
    if any(not row for row in encoded["input_ids"]):
        raise DataError(f"{rows.source or 'the given examples'}: a text has no tokens; remove empty texts")
    found = [
        Row({key: values[row] for key, values in encoded.items()}, target, sources[row] if sources else 0)
        for row, target in enumerate(problem.targets(rows))
    ]
    return found, sum(len(row) > max_length for row in whole)


def redraw(base: BaseModel) -> None:
    """Draw the weights anew that the checkpoint does not hold: normal as the config says, biases zero."""
    import torch

    deviation = float(getattr(base.model.config, "initializer_range", None) or 0.02)
    parameters: dict[str, Any] = dict(base.model.named_parameters())
    with torch.no_grad():
        for name in base.missing:
            if name not in parameters:
                continue
            if parameters[name].ndim > 1:
                parameters[name].normal_(0.0, deviation)
            elif name.endswith("bias"):
                parameters[name].zero_()
