"""One token far into a context, behind a cache of random states: what a long prompt would show, at the cost of a step.

A position table that is too short, rotary factors that switch, a window that is cut at the wrong place: each shows in the first
token beyond it, whatever the states before it are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle.cache_names import LAYER_PAST, is_past, present_of
from ..errors import ParityError
from .lengths import affordable, lengths_that_matter, windows
from .load import Loaded
from .parity_causal import Step
from .rounding import Noise

#: Bytes of the longest cache that is made for this.
CACHE_BYTES = 400_000_000


@dataclass(frozen=True)
class Place:
    """A token at a position (its number, from 0) of one sequence, behind states of all positions before."""

    position: int
    token: int

    def cache(self, inputs: Mapping[str, Sequence[int | str]], room: int = 0) -> dict[str, np.ndarray]:
        """Random keys and values ``[1, heads, position, head_dim]`` by cache input; the same each time.

        Behind them stand zeros for ``room`` tokens more.
        """
        rng = np.random.default_rng(self.position)
        made = {}
        for name, shape in inputs.items():
            if is_past(name):
                heads, width = int(shape[1]), int(shape[3])
                made[name] = np.zeros((1, heads, self.position + room, width), np.float32)
                made[name][:, :, : self.position] = rng.standard_normal((1, heads, self.position, width), np.float32)
        return made


def places(
    config: Mapping[str, Any],
    max_length: int | None,
    parameters: int,
    inputs: Mapping[str, Sequence[int | str]],
) -> list[Place]:
    """The last token of each length that matters and is too long to be read whole, where its cache fits."""
    numbers = sum(int(shape[1]) * int(shape[3]) for name, shape in inputs.items() if is_past(name))
    long = [n for n in lengths_that_matter(config, max_length) if n > 1 and not affordable(n, parameters)]
    vocabulary = int(config.get("vocab_size") or 2)
    return [Place(n - 1, (7 * n) % vocabulary) for n in long if 4 * numbers * n <= CACHE_BYTES]


def run_place(step: Step, inputs: Mapping[str, Sequence[int | str]], place: Place, room: int = 0) -> np.ndarray:
    """Logits ``[vocabulary]`` of a graph; ``inputs`` are its inputs with their shapes, ``room`` places left in its caches."""
    feeds = {
        "input_ids": np.array([[place.token]], np.int64),
        "attention_mask": np.ones((1, place.position + 1), np.int64),
        "position_ids": np.array([[place.position]], np.int64),
        "logits_from": np.array([0], np.int64),
        **place.cache(inputs, room),
    }
    found: np.ndarray = step({name: array for name, array in feeds.items() if name in inputs or name in _ALWAYS})[
        "logits"
    ][0, -1]
    return found


def in_place(session: Any) -> Step:
    """A step of a graph whose attention writes into the cache that it is given, which is then the only one in memory.

    Args:
        session: An ONNX Runtime session over a graph with GroupQueryAttention.

    Returns:
        A step that takes caches of the tokens before, and returns ``logits`` alone.
    """

    def step(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import onnxruntime as ort

        binding, held = session.io_binding(), []
        for name, array in feeds.items():
            if is_past(name):
                value = ort.OrtValue.ortvalue_from_numpy(array)
                binding.bind_ortvalue_output(present_of(name), value)
            else:
                value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            binding.bind_ortvalue_input(name, value)
            held.append(value)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        return {"logits": binding.get_outputs()[-1].numpy()}

    return step


_ALWAYS = {"input_ids", "attention_mask"}


def reference_place(
    module: Any, inputs: Mapping[str, Sequence[int | str]], place: Place, *, backwards: bool = False
) -> np.ndarray | None:
    """The same logits from PyTorch; ``None`` for a model whose cache cannot be filled from outside.

    With ``backwards`` the states before the token stand in the opposite order. Attention is a sum over them, whose positions are in
    them already, so that this is the same number computed otherwise; of a model that attends within a window it is not, and the
    order stays.

    Raises:
        ParityError: PyTorch has no such position, so the context that was taken for the model is too long.
    """
    import torch
    from transformers import DynamicCache

    backwards = backwards and not windows(module.config.to_dict())
    states = place.cache(inputs)  # each is let go when the layer has its own, joined with the token's
    floating = next((p.dtype for p in module.parameters() if p.dtype.is_floating_point), torch.float32)
    try:
        cache = DynamicCache(config=module.config)
        for layer in sorted(_layers(states)):
            key, value = (
                torch.from_numpy(states.pop(f"past_key_values.{layer}.{side}")).to(floating)
                for side in ("key", "value")
            )
            if backwards:
                key, value = key.flip(2), value.flip(2)
            cache.update(key, value, layer)
            del key, value
        with torch.no_grad():
            logits = module(
                input_ids=torch.tensor([[place.token]]),
                attention_mask=torch.ones((1, place.position + 1), dtype=torch.int64),
                position_ids=torch.tensor([[place.position]]),
                past_key_values=cache,
                use_cache=True,
            ).logits
    except IndexError as error:
        raise ParityError(
            f"PyTorch has no position {place.position}, though the model's context is said to be longer: {error}. Give --max-length"
        ) from error
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # a cache of another kind: its prompts are compared, as far as they are affordable
    found: np.ndarray = logits[0, -1].numpy()
    return found


def reference_places(
    loaded: Loaded, inputs: Mapping[str, Sequence[int | str]], parameters: int
) -> dict[Place, np.ndarray]:
    """What PyTorch computes at each of :func:`places`, where it can be asked."""
    found = {
        place: reference_place(loaded.model, inputs, place)
        for place in places(loaded.model.config.to_dict(), loaded.max_length, parameters, inputs)
    }
    return {place: logits for place, logits in found.items() if logits is not None}


def place_noise(expected: Mapping[Place, np.ndarray], again: Mapping[Place, np.ndarray], how: str) -> Noise:
    """How far the reference's logits at places are from themselves, computed otherwise: ``how`` in words."""
    return Noise(max(place_difference(again[place], logits) for place, logits in expected.items()), how)


def place_difference(mine: np.ndarray, theirs: np.ndarray) -> float:
    """max |difference| of logits, relative where they exceed 1; infinite where either is not finite."""
    difference = np.abs(mine.astype(np.float64) - theirs)
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.max()) / max(1.0, float(np.abs(theirs).max()))


def _layers(names: Iterable[str]) -> set[int]:
    return {int(found.group(0).split(".")[1]) for name in names if (found := LAYER_PAST.fullmatch(name))}
