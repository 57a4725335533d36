"""One inference of a case, ready to be timed: a batch through an encoder, a prompt or a token through a language model."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..bundle import read_bundle
from ..errors import BundleError, InputError, MeasureError
from ..targets import Shape
from .job import Case

if TYPE_CHECKING:
    from ..runtime import Runtime

Arrays = dict[str, np.ndarray]

#: Tokens decoded before a language model goes back to the context it is measured at.
DECODED = 32


def inference(runtime: Runtime, case: Case, seed: int) -> Callable[[], np.ndarray | Arrays]:
    """A call that runs ``case`` once with the adapter in use and gives its outputs: by name, or a model's logits alone.

    Of a model that writes, ``run`` reads a prompt of the case's shape from nothing to its first logits, and ``decode`` feeds
    one token to each row at a context of the case's length (up to ``DECODED`` tokens more; an encoder-decoder's own
    tokens begin at one). Of speech ``run`` reads one window for each row, whatever the case's length.
    """
    if not runtime.manifest.decodes:
        inputs = make_inputs(runtime, case.shape, seed)
        return lambda: runtime.forward(inputs)
    prompts = _token_ids(runtime, case.shape, seed).tolist()
    # Held by the calls below: the adapter that is in use now.
    view = runtime.view
    before = view.active.prefix_length
    limit = None if runtime.manifest.max_length is None else runtime.manifest.max_length - before
    if limit is not None and case.sequence > limit:
        raise InputError(
            f"case {case.label}: the bundle takes at most {limit} tokens after the adapter's {before} states"
        )
    taken = case.sequence if view.generator.continues else 1
    room = DECODED if limit is None else min(DECODED, limit - taken)
    if case.phase == "run":
        return lambda: view.decoder(case.batch, case.sequence).prefill(prompts)
    if room < 1:
        raise InputError(
            f"case {case.label}: the bundle takes at most {limit} tokens, so none can be decoded after them"
        )
    decoder = view.decoder(case.batch, case.sequence + room)
    decoder.prefill(prompts)
    begun = decoder.width
    token = [row[-1] for row in prompts]

    def step() -> np.ndarray:
        if decoder.width >= begun + room:
            decoder.truncate(begun)
        return decoder.step(token)

    return step


def make_inputs(runtime: Runtime, shape: Shape, seed: int, vocabulary: int | None = None) -> Arrays:
    """Seeded random token ids with full masks for every input of the bundle, each ``[batch, sequence]``."""
    ids = _token_ids(runtime, shape, seed, vocabulary)
    fill = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.broadcast_to(np.arange(shape.sequence), shape),
    }
    unknown = [entry.name for entry in runtime.manifest.inputs if entry.name not in fill]
    if unknown:
        raise MeasureError(f"cannot make samples for input {', '.join(unknown)}; known inputs: {', '.join(fill)}")
    return {
        entry.name: np.ascontiguousarray(fill[entry.name], dtype=entry.dtype.lower())
        for entry in runtime.manifest.inputs
    }


def _token_ids(runtime: Runtime, shape: Shape, seed: int, vocabulary: int | None = None) -> np.ndarray:
    limit = runtime.manifest.max_length
    if limit is not None and shape.sequence > limit:
        raise InputError(f"shape {shape}: the bundle takes at most {limit} tokens")
    size = _vocabulary(runtime.bundle.path) if vocabulary is None else vocabulary
    return np.random.default_rng(seed).integers(0, size, size=shape)


@lru_cache(maxsize=1)  # read outside what is timed, but for the first call
def _vocabulary(path: Path) -> int:
    bundle = read_bundle(path)
    config = bundle.read_json("config.json")
    try:
        return int((config.get("text_config") or config)["vocab_size"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = bundle.file("config.json")
        raise BundleError(f"{where}: no readable vocab_size, which random token ids need ({error})") from error
