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
from .memory import give_back
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

        Layers of one shape share one array of keys and one of values, so that memory does not grow with the layers: what a table or
        a window does at this position shows whichever states stand before it. Behind them stand zeros for ``room`` tokens more.
        """
        rng = np.random.default_rng(self.position)
        states: dict[tuple[str, int, int], np.ndarray] = {}
        made = {}
        for name, shape in inputs.items():
            if is_past(name):
                side, heads, width = name.rsplit(".", 1)[-1], int(shape[1]), int(shape[3])
                array = states.get((side, heads, width))
                if array is None:
                    array = states[side, heads, width] = np.zeros((1, heads, self.position + room, width), np.float32)
                    array[:, :, : self.position] = rng.standard_normal((1, heads, self.position, width), np.float32)
                made[name] = array
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

    Where layers share one array (:meth:`Place.cache`), each writes its own state behind it before it attends, in the place of the
    layer's before.

    Args:
        session: An ONNX Runtime session over a graph with GroupQueryAttention, which runs one node after the other.

    Returns:
        A step that takes caches of the tokens before, and returns ``logits`` alone.
    """

    def step(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import onnxruntime as ort

        binding, held = session.io_binding(), dict[int, Any]()
        for name, array in feeds.items():
            value = held.get(id(array))
            if value is None:
                value = ort.OrtValue.ortvalue_from_numpy(array if is_past(name) else np.ascontiguousarray(array))
                held[id(array)] = value
            if is_past(name):
                binding.bind_ortvalue_output(present_of(name), value)
            binding.bind_ortvalue_input(name, value)
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
    states = place.cache(inputs)
    floating = next((p.dtype for p in module.parameters() if p.dtype.is_floating_point), torch.float32)
    made: dict[int, Any] = {}  # of each array one tensor, which layers share as they share the array

    def tensor(array: np.ndarray) -> Any:
        if id(array) not in made:
            own = torch.from_numpy(array).to(floating)
            made[id(array)] = own.flip(2) if backwards else own
        return made[id(array)]

    try:
        cache = DynamicCache(config=module.config)
        # Layers that read the states of an earlier one read what it holds behind the token.
        sharing = bool(getattr(module.config, "num_kv_shared_layers", 0))
        for layer in sorted(_layers(states)):
            key, value = (tensor(states[f"past_key_values.{layer}.{side}"]) for side in ("key", "value"))
            cache.update(key, value, layer)
            if not sharing:
                _hold_in_common(cache.layers[layer], key, value)
        give_back(collect=False)  # the copies that layers had made
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


def _hold_in_common(layer: Any, key: Any, value: Any) -> None:
    """Let a layer of PyTorch's cache hold states that others hold too, before a step and after it: nothing follows that step.

    A layer keeps a copy of what it is given, and with each token another copy of all states before it.
    """
    import torch

    if not (isinstance(getattr(layer, "keys", None), torch.Tensor) and layer.keys.ndim == 4):
        return  # a kind of cache that holds something else
    kept = layer.keys.shape[2]
    held = tuple(states[:, :, states.shape[2] - kept :] for states in (key, value))
    if not (torch.equal(held[0], layer.keys) and torch.equal(held[1], layer.values)):
        return
    layer.keys, layer.values = held
    update = layer.update

    def update_and_forget(*arguments: Any, **options: Any) -> Any:
        found = update(*arguments, **options)
        layer.keys, layer.values = held
        return found

    layer.update = update_and_forget


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
