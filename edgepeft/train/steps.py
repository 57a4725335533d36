"""Training steps of a classifier, one after another: what every kind of training and choosing here is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ..json_text import json_text
from .batches import Collator, Row, epoch_batches, sorted_batches
from .cached import ActivationCache
from .checkpointing import recompute_activations
from .device import training_device
from .fast_linear import StepFloats
from .mixing import mixture_of
from .processes import group
from .resume import random_state, restore_random
from .threads import ThreadChooser, timed_threads
from .tokenizer import HubTokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

#: The share of the steps in which the learning rate rises.
WARMUP = 0.06
_MOST_GRADIENT_NORM = 1.0
_LEAST_EVALUATION_BATCH = 32
#: What AdaLoRA's allocator remembers of the steps before.
_ALLOCATED = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class NotFiniteLossError(Exception):
    """The loss of a step is NaN or infinite; the message names the step and what helps."""


class Run:
    """One training run: a model, its rows, its optimizer, and the steps it has made.

    AdamW without weight decay, gradients cut to a norm of 1; the learning rate rises linearly over the first 6 % of the steps and
    falls linearly to 0 (as with Hugging Face's ``Trainer``). The order of rows follows from the seed alone. A context
    manager: PyTorch's number of threads is as before afterwards. In several processes (:mod:`.processes`) each computes a share
    of every batch, and all make the same steps.

    Args:
        model: The network; what requires gradients is trained.
        tokenizer: Pads batches.
        rows: The training rows.
        batch_size: Rows in a step.
        learning_rate: The learning rate at its highest.
        total_steps: Steps after which the learning rate is 0.
        seed: Of the order of rows.
        threads: PyTorch's threads; ``None`` for as many as turn out fastest.
        rate_at: The learning rate at a step (from 0), relative to ``learning_rate``, in place of the usual course.
        loss_of: The loss of a batch, in place of the model's own.
        epoch_of: The batches of an epoch, from rows, batch size and a generator, in place of those of similar length.
        bf16: Whether steps compute in bfloat16: on a processor products with frozen weights alone (:mod:`.fast_linear`), on a GPU
            by autocast. What is trained, and what :meth:`evaluate` gives, is float32.
        checkpointing: Whether layers compute their activations again in the backward pass (:mod:`.checkpointing`).
        temperature: How rows of several sources are mixed (:class:`.Mixture`); 1 for by size.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: HubTokenizer,
        rows: Sequence[Row],
        *,
        batch_size: int,
        learning_rate: float,
        total_steps: int,
        seed: int,
        threads: int | None = None,
        rate_at: Callable[[int], float] | None = None,
        loss_of: Callable[[Run, Sequence[Row]], torch.Tensor] | None = None,
        epoch_of: Callable[[Sequence[Row], int, np.random.Generator], list[list[Row]]] | None = None,
        bf16: bool = False,
        checkpointing: bool = False,
        temperature: float = 1.0,
    ) -> None:
        import torch

        self.device = training_device()
        self.model = model.to(self.device)
        if checkpointing:
            recompute_activations(self.model)
        self.rows = rows
        self.batch_size, self.learning_rate, self.total_steps = batch_size, learning_rate, total_steps
        self.steps_per_epoch = -(-len(rows) // batch_size)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.losses: list[float] = []
        self._collate = Collator(tokenizer, self.device)
        self._optimizer = torch.optim.AdamW(self.trained, lr=learning_rate, weight_decay=0.0)
        self._loss_of, self._epoch_of = loss_of, epoch_of or epoch_batches
        self._floats = StepFloats(self.model, bf16=bf16)
        self._rate_at = rate_at or self._usual_rate
        self._generator = np.random.default_rng(seed)
        self._mixture = mixture_of([row.source for row in rows], temperature, seed)
        self._epoch: list[list[Row]] = []
        self._group = group()
        self._group.same(self.trained)
        if self._group.several and threads is None:
            # As the launcher set it: steps wait for those of other processes, so their times say nothing of one's own threads.
            threads = torch.get_num_threads()
        self._chooser = ThreadChooser(threads if self.device.type == "cpu" else torch.get_num_threads())
        self._threads_before = torch.get_num_threads()
        self._cache: ActivationCache | None = None
        # AdaLoRA moves rank between modules, by gradients, as long as it trains.
        self._plan_ranks = getattr(getattr(model, "base_model", None), "update_and_allocate", None)

    def __enter__(self) -> Self:
        import torch

        torch.set_num_threads(self._chooser.chosen)
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._threads_before)

    @property
    def threads(self) -> int:
        """The threads that steps take now."""
        return self._chooser.chosen

    @property
    def rate(self) -> float:
        """The learning rate of the last step, or of the first."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def cached_layers(self) -> int:
        """How many layers are run once a row and not once a step."""
        return self._cache.layers if self._cache is not None else 0

    def keep_states(self, also: Sequence[Row] = ()) -> None:
        """Run the layers below the lowest trained one once, for the training rows and ``also``, and keep what they give."""
        rows = [*self.rows, *also]
        for row in rows:
            row.hidden = None
        self._cache = ActivationCache(self.model, rows, self._collate, max(_LEAST_EVALUATION_BATCH, self.batch_size))

    def advance(self, steps: int, on_step: Callable[[int], None] = lambda step: None) -> list[float]:
        """Make ``steps`` training steps; the loss of each.

        Raises:
            NotFiniteLossError: A loss is no number. The weights are those before that step.
        """
        import torch

        self.model.train()
        mine = []
        for _ in range(steps):
            if not self._epoch:
                self._epoch = self._epoch_of(self._drawn(), self.batch_size, self._generator)
            rows = self._epoch.pop(0)
            step = len(self.losses)
            for part in self._optimizer.param_groups:
                part["lr"] = self.learning_rate * self._rate_at(step)
            with timed_threads(self._chooser, len(rows) * max(map(len, rows))):
                value = self._gradients(rows)
                if not math.isfinite(value):
                    self._optimizer.zero_grad()
                    raise NotFiniteLossError(
                        f"the training loss became {value} at step {step + 1} with learning rate {self.learning_rate:g}; lower "
                        "the learning rate, or check the texts and the base's weights"
                    )
                torch.nn.utils.clip_grad_norm_(self.trained, _MOST_GRADIENT_NORM)
                self._optimizer.step()
                if self._plan_ranks is not None:
                    self._plan_ranks(step)
                self._optimizer.zero_grad()
            self.losses.append(value)
            mine.append(value)
            on_step(len(self.losses))
        return mine

    def _drawn(self) -> Sequence[Row]:
        """The rows of the epoch that begins now."""
        if self._mixture is None:
            return self.rows
        return [self.rows[place] for place in self._mixture.epoch(len(self.losses) // self.steps_per_epoch)]

    def _gradients(self, rows: Sequence[Row]) -> float:
        """Compute the gradients of a batch, over all processes; its loss."""
        import torch

        mine = self._group.share(rows)
        if mine:
            with self._floats.step():
                with self._floats.forward():
                    loss = self._loss(mine)
                    if self._group.several:
                        loss = loss * (len(mine) / len(rows))
                loss.backward()  # type: ignore[no-untyped-call] # torch 2.13 has no types here
            told = loss.detach()
        else:
            told = torch.zeros((), device=self.device)
        if self._group.several:
            for parameter in self.trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            told = told.reshape(1).float()
            self._group.add_up([*(parameter.grad for parameter in self.trained if parameter.grad is not None), told])
        return float(told)  # waits for a GPU, which by now has the backward pass to do

    def _loss(self, rows: Sequence[Row]) -> torch.Tensor:
        return self._loss_of(self, rows) if self._loss_of is not None else self.forward(rows).loss

    def forward(self, rows: Sequence[Row]) -> Any:
        """The model's output for one batch of ``rows``, from their kept states where there are any."""
        batch = self._collate(rows)
        if self._cache is None:
            return self.model(**batch)
        with self._cache.feeding(rows, batch):
            return self.model(**batch)

    def evaluate(self, rows: Sequence[Row]) -> tuple[npt.NDArray[np.float32], float]:
        """Logits ``[rows, labels]`` in the order of ``rows``, and the mean loss."""
        import torch

        found: list[Any] = [None] * len(rows)
        total = 0.0
        torch.set_num_threads(self.threads)
        self.model.eval()
        mine = []
        with torch.no_grad():
            batches = list(enumerate(sorted_batches(rows, max(_LEAST_EVALUATION_BATCH, self.batch_size))))
            for number, (places, part) in self._group.share(batches):
                output = self.forward(part)
                mine.append((number, float(output.loss) * len(part), places, output.logits.float().cpu().numpy()))
        for _, loss, places, part_logits in sorted(chain(*self._group.gathered(mine)), key=itemgetter(0)):
            total += loss
            for place, logits in zip(places, part_logits, strict=True):
                found[place] = logits
        return np.stack(found), total / len(rows)

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on, for :meth:`restore`: weights, optimizer, order of rows, random generators.

        Of several processes all must call it; what differs between them are their random generators.
        """
        places = {id(row): place for place, row in enumerate(self.rows)}
        allocator = self._allocator
        return {
            "weights": self.weights(),
            "optimizer": self._optimizer.state_dict(),
            "losses": list(self.losses),
            "order": json_text(self._generator.bit_generator.state, indent=None),
            "epoch": [[places[id(row)] for row in batch] for batch in self._epoch],
            "random": self._group.gathered(random_state()),
            "ranks": {} if allocator is None else {name: getattr(allocator, name) for name in _ALLOCATED},
            "rank_pattern": None if allocator is None else allocator.peft_config.rank_pattern,
            "threads": self.threads,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state` of a run over the same rows."""
        self.load(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])
        self._generator.bit_generator.state = json.loads(state["order"])
        self._epoch = [[self.rows[place] for place in batch] for batch in state["epoch"]]
        restore_random(state["random"][self._group.place])
        if (allocator := self._allocator) is not None:
            for name, value in state["ranks"].items():
                setattr(allocator, name, {key: each.to(self.device) for key, each in value.items()})
            allocator.peft_config.rank_pattern = state["rank_pattern"]

    @property
    def _allocator(self) -> Any:
        return getattr(getattr(self.model, "base_model", None), "rankallocator", None)

    def weights(self) -> list[torch.Tensor]:
        """A copy of what is trained."""
        return [parameter.detach().clone() for parameter in self.trained]

    def load(self, weights: Sequence[torch.Tensor]) -> None:
        """Put :meth:`weights` back."""
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.trained, weights, strict=True):
                parameter.copy_(value)

    def _usual_rate(self, step: int) -> float:
        warmup = math.ceil(WARMUP * self.total_steps)
        if step < warmup:
            return step / max(1, warmup)
        return max(0.0, (self.total_steps - step) / max(1, self.total_steps - warmup))
