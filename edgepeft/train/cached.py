"""Activations below the lowest trained layer: computed once a row, and fed in its place afterwards.

A frozen layer without dropout gives the same states in every epoch. With LoRA in the upper half of an encoder the lower half is
then run once a row and not once an epoch, and with a head alone the whole encoder is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .batches import Collator, Row, sorted_batches

if TYPE_CHECKING:
    import torch
    from torch import nn

#: The most memory that kept states may take, in bytes.
_MOST_BYTES = 1 << 30
#: Largest difference in logits with and without kept states, relative to the largest logit (or 1): another batch pads otherwise,
#: which moves float32 sums by some 1e-6.
_TOLERANCE = 1e-4


class _ReachedError(Exception):
    """The states that were looked for are known; the rest of the network need not run."""


class ActivationCache:
    """Keeps the states that enter the lowest trained layer of a network, by row, and feeds them instead of computing them.

    ``layers`` is how many layers are left out; 0 where nothing can be: something below is trained or random, the network is not
    a stack of layers, states would take more than 1 GiB, or the network gives other logits with kept states.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Row], collate: Collator, batch_size: int) -> None:
        self._model, self._collate = model, collate
        self._name, self._blocks = blocks_of(model)
        self.layers = 0
        depth = _frozen_depth(model, self._name, self._blocks)
        if depth and self._fill(rows, depth, batch_size):
            self.layers = depth
            if not self._agrees(list(rows[:4])):
                self.drop(rows)

    def add(self, rows: Sequence[Row], batch_size: int) -> None:
        """Keep the states of further rows."""
        if self.layers and not self._fill([row for row in rows if row.hidden is None], self.layers, batch_size):
            self.drop(rows)

    def drop(self, rows: Sequence[Row]) -> None:
        """Forget all, and compute every layer from now on."""
        self.layers = 0
        for row in rows:
            row.hidden = None

    @contextmanager
    def feeding(self, rows: Sequence[Row], batch: dict[str, torch.Tensor]) -> Iterator[None]:
        """Within: the model computes ``batch`` of ``rows`` from their kept states, where all of them are kept."""
        if not self.layers or any(row.hidden is None for row in rows):
            yield
            return
        kept = list(self._blocks[: self.layers])
        stubs = _stubs(kept, self._tuple, self._padded(rows, batch["attention_mask"]))
        try:
            for place, stub in enumerate(stubs):
                self._blocks[place] = stub
            yield
        finally:
            for place, block in enumerate(kept):
                self._blocks[place] = block

    def _padded(self, rows: Sequence[Row], mask: torch.Tensor) -> torch.Tensor:
        import torch

        states = torch.cat([row.hidden for row in rows if row.hidden is not None])
        padded = torch.zeros((*mask.shape, states.shape[-1]), dtype=states.dtype, device=mask.device)
        padded[mask.bool()] = states.to(mask.device)  # on whichever side the tokenizer pads
        return padded

    def _fill(self, rows: Sequence[Row], depth: int, batch_size: int) -> bool:
        """Run the lower layers over ``rows``; whether their states could be kept."""
        import torch

        found: list[Any] = []
        above: list[bool] = []

        def stop(*_: Any) -> None:
            found.append(_[-1])
            raise _ReachedError

        handles = [self._blocks[depth - 1].register_forward_hook(stop)]
        # A trained module that runs before this point (embeddings, a prompt) makes the states change.
        handles += [
            module.register_forward_hook(lambda *_: above.append(True))
            for module in self._model.modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        ]
        training, kept_bytes = self._model.training, 0
        self._model.eval()
        try:
            for _, part in sorted_batches(rows, batch_size):
                batch = self._collate(part)
                if batch.get("attention_mask") is None:
                    return False
                try:
                    with torch.no_grad():
                        self._model(**{name: value for name, value in batch.items() if name != "labels"})
                    return False  # the layer was never reached
                except _ReachedError:
                    output = found.pop()
                if above:
                    return False
                self._tuple = isinstance(output, tuple)
                states = output[0] if isinstance(output, tuple) else output
                mask = batch["attention_mask"].bool()
                if not isinstance(states, torch.Tensor) or states.shape[:2] != mask.shape or states.dim() != 3:
                    return False
                for place, row in enumerate(part):
                    row.hidden = states[place][mask[place]].clone()
                    kept_bytes += row.hidden.numel() * row.hidden.element_size()
                if kept_bytes > _MOST_BYTES:
                    return False
            return True
        finally:
            for handle in handles:
                handle.remove()
            self._model.train(training)
            if found or above or kept_bytes > _MOST_BYTES:
                self.drop(rows)

    def _agrees(self, rows: list[Row]) -> bool:
        import torch

        batch = self._collate(rows)
        batch.pop("labels")
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                plain = self._model(**batch).logits
                with self.feeding(rows, batch):
                    fed = self._model(**batch).logits
        finally:
            self._model.train(training)
        return float((plain - fed).abs().max()) <= _TOLERANCE * max(1.0, float(plain.abs().max()))


def blocks_of(model: nn.Module) -> tuple[str, Any]:
    """The name and list of the network's layers: its longest list of modules; empty where it has none."""
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda entry: len(entry[1]), default=("", []))


def _frozen_depth(model: nn.Module, name: str, blocks: Any) -> int:
    """How many of the first ``blocks`` hold nothing that is trained or random; 0 where something outside and below is random."""
    from torch import nn

    def random(module: nn.Module) -> bool:
        return any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())

    depth = 0
    for block in blocks:
        if any(parameter.requires_grad for parameter in block.parameters()) or random(block):
            break
        depth += 1
    outside = (part for place, part in model.named_modules() if not f"{place}.".startswith(f"{name}."))
    dropout = any(isinstance(part, nn.Dropout) and part.p > 0 for part in outside)
    return 0 if dropout or _functional_dropout(model) else depth


def _functional_dropout(model: nn.Module) -> bool:
    """Whether the config asks for dropout that no module shows (attention's is a function's argument)."""
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if config is not None else {}
    return any(
        "drop" in key and isinstance(value, float) and value > 0
        for key, value in values.items()
        if "classifier" not in key
    )


def _stubs(kept: Sequence[nn.Module], as_tuple: bool, states: torch.Tensor) -> list[nn.Module]:
    """One module for each left-out layer: each gives ``states``, and has the attributes of the layer it stands for."""
    from torch import nn

    class Stub(nn.Module):
        def __init__(self, original: nn.Module) -> None:
            super().__init__()
            object.__setattr__(self, "original", original)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["original"], name)

        def forward(self, *_: Any, **__: Any) -> Any:
            return (states,) if as_tuple else states

    return [Stub(block) for block in kept]
