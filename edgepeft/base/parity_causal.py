"""Prefill and decode of a causal language model, in ONNX Runtime and in PyTorch, on the same ragged prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..adapters.methods.registry import method_in
from ..bundle.cache_names import as_pasts, is_past
from .lengths import affordable, boundaries, switches
from .ragged import SHAPES, ragged_batches

#: Runs one step: inputs by name (caches included) to outputs by name.
Step = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

_SHORT = 32


@dataclass(frozen=True)
class CausalBatch:
    """Prompts padded on the right, and the tokens that follow each.

    ``ids`` and ``mask`` are int64 ``[batch, sequence]``, ``following`` is int64 ``[batch, steps]``.
    """

    ids: np.ndarray
    mask: np.ndarray
    following: np.ndarray
    #: Whether a graph reads the prompts in two pieces, through its cache, as the runtime reads long ones.
    in_pieces: bool = False

    @property
    def kept(self) -> int:
        """Positions at the end whose logits are compared: a long prompt times a large vocabulary is gigabytes."""
        width = int(self.ids.shape[1])
        return width if width <= _SHORT else 8


def causal_batches(
    *,
    vocab: int,
    pad_id: int,
    max_length: int | None = None,
    window: int | None = None,
    steps: int = 2,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    parameters: int = 0,
    pieces: bool = False,
) -> list[CausalBatch]:
    """Ragged prompts for parity; with a sliding ``window`` of up to 1,024 tokens one prompt outgrows it.

    With ``config`` (a ``config.json``) prompts of one row stand on each side of every length at which that model computes
    otherwise, and at its longest, where a model of so many ``parameters`` can afford them. With ``pieces`` those are read in two
    pieces, except beyond a switch: there a piece alone is computed otherwise than the whole.
    """
    room = None if max_length is None else max(1, max_length - steps)
    shapes = [*SHAPES]
    if window is not None and window <= 1024 and (room is None or window + 7 <= room):
        shapes.append((1, window + 7))
    whole: int | None = None
    if config is not None:
        whole = min(switches(config), default=None)
        around = {length for n in boundaries(config, max_length) for length in (n - steps, n + 1)} | ({room} - {None})
        shortest = max(width for _, width in SHAPES)
        inside = (n for n in around if n is not None and n > shortest and (room is None or n <= room))
        shapes += [(1, n) for n in sorted(inside) if affordable(n + steps, parameters)]
    if whole is not None:
        # A call is computed by its longest row, and a cache belongs to one side of the switch: no batch stands on both, and
        # no text grows over it.
        shapes = [(1 if width > whole else rows, width) for rows, width in shapes if not whole - steps < width <= whole]
    names = ("input_ids", "attention_mask")
    prompts = ragged_batches(
        vocab=vocab, pad_id=pad_id, input_names=names, max_length=room, shapes=tuple(shapes), seed=seed
    )
    rng = np.random.default_rng(seed + 1)
    batches = []
    for prompt in prompts:
        ids, mask = prompt["input_ids"], prompt["attention_mask"]
        rows, width = ids.shape
        in_pieces = pieces and rows == 1 and width > _SHORT and (whole is None or width + steps <= whole)
        batches.append(CausalBatch(ids, mask, rng.integers(0, vocab, (rows, steps), np.int64), in_pieces))
    return batches


def empty_cache(inputs: Mapping[str, Sequence[int | str]], batch: int) -> dict[str, np.ndarray]:
    """Caches of no tokens: float32 ``[batch, heads, 0, head_dim]`` by input name. ``inputs`` are names and shapes."""
    return {
        name: np.zeros((batch, int(shape[1]), 0, int(shape[3])), np.float32)
        for name, shape in inputs.items()
        if is_past(name)
    }


def run_causal(
    step: Step, inputs: Mapping[str, Sequence[int | str]], batch: CausalBatch
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the prompts' last positions ``[batch, kept, vocab]`` and of each following token ``[batch, steps, vocab]``."""
    lengths = batch.mask.sum(axis=1)
    mask = batch.mask
    rows, width = batch.ids.shape
    cache: Mapping[str, np.ndarray] = empty_cache(inputs, rows)
    outputs: Mapping[str, np.ndarray] = {}
    cut = width // 2 if batch.in_pieces else width
    for start, end in ((0, cut), (cut, width))[: 1 + batch.in_pieces]:
        feeds = {"input_ids": batch.ids[:, start:end], "attention_mask": mask[:, :end], **cache}
        if "position_ids" in inputs:
            feeds["position_ids"] = np.broadcast_to(np.arange(start, end, dtype=np.int64), (rows, end - start)).copy()
        if "logits_from" in inputs:
            feeds["logits_from"] = np.array([end - start - batch.kept], np.int64)
        outputs = step(feeds)
        cache = as_pasts(outputs)
    prompt = outputs["logits"][:, -batch.kept :]
    following = []
    for index in range(batch.following.shape[1]):
        mask = np.concatenate([mask, np.ones((rows, 1), np.int64)], axis=1)
        feeds = {"input_ids": batch.following[:, index : index + 1], "attention_mask": mask}
        feeds |= as_pasts(outputs)
        if "position_ids" in inputs:
            feeds["position_ids"] = (lengths + index)[:, None].astype(np.int64)
        outputs = step(feeds)
        following.append(outputs["logits"][:, -1])
    return prompt, np.stack(following, axis=1)


def _keep(module: Any, count: int) -> dict[str, int]:
    """How a transformers model is asked for its last logits only, where it can be."""
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}


def sees_calls(module: Any) -> bool:
    """Whether a token's logits depend on what else is in its call, padding among it."""
    method = method_in(module)
    return method is not None and method.averages_over_tokens


def _step_of(module: Any, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any) -> Any:
    import torch

    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    return module(**tensors, past_key_values=cache, use_cache=True)


def _reference_by_calls(module: Any, batch: CausalBatch) -> tuple[np.ndarray, np.ndarray]:
    """The same logits call by call, through PyTorch's cache, where a call is the unit that the model computes on."""
    import torch

    rows, width = batch.ids.shape
    lengths, mask = batch.mask.sum(axis=1), batch.mask
    with torch.no_grad():
        out = _step_of(module, batch.ids, mask, np.arange(width)[None].repeat(rows, 0), None)
        prompt, following = out.logits[:, -batch.kept :].numpy(), []
        for index in range(batch.following.shape[1]):
            mask = np.concatenate([mask, np.ones((rows, 1), np.int64)], axis=1)
            ids = batch.following[:, index : index + 1]
            out = _step_of(module, ids, mask, (lengths + index)[:, None], out.past_key_values)
            following.append(out.logits[:, -1].numpy())
    return prompt, np.stack(following, axis=1)


def reference_causal(module: Any, batch: CausalBatch) -> tuple[np.ndarray, np.ndarray]:
    """The same logits from PyTorch: prompts as padded, following tokens by running each row whole and unpadded.

    Where a call's tokens change each other, following tokens are run through PyTorch's cache instead.
    """
    import torch

    if sees_calls(module):
        return _reference_by_calls(module, batch)

    def logits(ids: np.ndarray, kept: int, **inputs: Any) -> Any:
        found = module(input_ids=torch.from_numpy(ids), use_cache=False, **inputs, **_keep(module, kept)).logits
        return found[:, -kept:]

    with torch.no_grad():
        prompt = logits(batch.ids, batch.kept, attention_mask=torch.from_numpy(batch.mask))
        following = []
        for ids, mask, after in zip(batch.ids, batch.mask, batch.following, strict=True):
            whole = np.concatenate([ids[mask == 1], after])[None]
            following.append(logits(whole, len(after))[0].numpy())
    return prompt.numpy(), np.stack(following)


def row_calls(module: Any, batch: CausalBatch) -> list[Callable[[], np.ndarray]]:
    """Calls of PyTorch that give each row's logits, whole and unpadded: those that are compared of its prompt, and those after it.

    They do not depend on each other. A row's logits do not depend on what is padded beside it, so :func:`from_rows` makes of
    them what :func:`reference_causal` gives, at half its cost.
    """

    def logits(ids: np.ndarray, kept: int) -> np.ndarray:
        import torch

        with torch.no_grad():
            found = module(input_ids=torch.from_numpy(ids[None]), use_cache=False, **_keep(module, kept)).logits
        numbers: np.ndarray = found[0, -kept:].numpy()
        return numbers

    first = batch.ids.shape[1] - batch.kept
    return [
        partial(logits, np.concatenate([ids[mask == 1], after]), max(0, int(mask.sum()) - first) + len(after))
        for ids, mask, after in zip(batch.ids, batch.mask, batch.following, strict=True)
    ]


def from_rows(batch: CausalBatch, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The findings of :func:`row_calls` as :func:`reference_causal` gives them; zeros where a prompt is padded."""
    steps = batch.following.shape[1]
    prompt = np.zeros((len(rows), batch.kept, rows[0].shape[-1]), rows[0].dtype)
    for row, found in enumerate(rows):
        prompt[row, : len(found) - steps] = found[: len(found) - steps]
    return prompt, np.stack([found[len(found) - steps :] for found in rows])


def causal_difference(
    mine: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray], mask: np.ndarray
) -> float:
    """max |logit difference| over real tokens and following ones, relative where logits exceed 1."""
    worst = 0.0
    kept = mask[:, mask.shape[1] - mine[0].shape[1] :, None]
    for actual, expected, weight in zip(mine, reference, (kept, np.ones((len(mine[1]), 1, 1))), strict=True):
        largest = apart = 0.0
        for row, other, counts in zip(actual, expected, weight, strict=True):  # in float64, logits of a batch are large
            difference = row.astype(np.float64)
            difference -= other
            np.abs(difference, out=difference)
            difference *= counts
            if not np.isfinite(difference).all():
                return float("inf")
            apart = max(apart, float(difference.max(initial=0.0)))
            largest = max(largest, float(other.max(initial=0.0)), -float(other.min(initial=0.0)))
        worst = max(worst, apart / max(1.0, largest))
    return worst
