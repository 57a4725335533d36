"""The decoder graph of an encoder-decoder bundle: its session, its caches, forced tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BundleError, InputError

if TYPE_CHECKING:
    from ..active import ActiveAdapter
    from ..session import Runtime

PAST, PRESENT = "past_key_values.", "present."


class Seq2Seq:
    """The decoder's session, beside the encoder's in ``runtime``."""

    def __init__(self, runtime: Runtime) -> None:
        import onnxruntime as ort

        manifest = runtime.manifest
        file = manifest.variants[runtime.variant].decoder_file
        if file is None:
            raise InputError(f"{runtime.bundle.path} is for {manifest.task}; it has no decoder that writes texts")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if runtime.threads is not None:
            options.intra_op_num_threads = runtime.threads
        path = runtime.bundle.file(file)
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exception types are not public
            raise BundleError(f"ONNX Runtime cannot open {path}: {error}") from error
        self._runtime = runtime
        self._outputs = [output.name for output in self.session.get_outputs()]
        self._slots = {value.name for value in self.session.get_overridable_initializers()}
        self.shapes = {value.name: value.shape for value in self.session.get_inputs()}
        config = json.loads(runtime.bundle.file("config.json").read_text(encoding="utf-8"))
        if "generation_config.json" in manifest.files:
            config |= json.loads(runtime.bundle.file("generation_config.json").read_text(encoding="utf-8"))
        self.start = int(config["decoder_start_token_id"])
        end = config.get("eos_token_id")
        self.ends = set(end) if isinstance(end, list) else {end}
        #: The token that every answer begins with, where the model's files name one (mBART's language, BART's BOS).
        self.forced: int | None = config.get("forced_bos_token_id")

    def slots(self, active: ActiveAdapter) -> dict[str, Any]:
        """The adapter's tensors for this graph, as OrtValues by name."""
        return {name: value for name, value in self._runtime.slot_values(active).items() if name in self._slots}

    def step(self, feeds: Mapping[str, Any], slots: Mapping[str, Any], options: Any = None) -> dict[str, np.ndarray]:
        """One run of the decoder: ``input_ids``, ``encoder_attention_mask`` and caches to logits and caches."""
        import onnxruntime as ort

        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        found = self.session.run_with_ort_values(self._outputs, {**values, **slots}, options)
        return {name: value.numpy() for name, value in zip(self._outputs, found, strict=True)}

    def empty(self, encoded: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """The caches before the first token: the encoder's keys and values, and no tokens of the decoder's own."""
        cache = {PAST + name.removeprefix(PRESENT): a for name, a in encoded.items() if name.startswith(PRESENT)}
        own = {
            name: np.zeros((rows, int(shape[1]), 0, int(shape[3])), np.float32)
            for name, shape in self.shapes.items()
            if is_own(name)
        }
        return {**cache, **own}

    def greedy(self, inputs: Mapping[str, np.ndarray], max_new_tokens: int, active: ActiveAdapter) -> list[list[int]]:
        """The most likely tokens of each row, up to its end token (left out) or ``max_new_tokens``."""
        from .crossed import CrossedDecoder

        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
        decoder = CrossedDecoder(self._runtime, active)
        written: list[list[int]] = [[] for _ in inputs["input_ids"]]
        going = list(range(len(written)))
        logits = decoder.read(inputs)
        for left in range(max_new_tokens, 0, -1):
            best: Sequence[int] = logits.argmax(axis=-1).tolist()
            kept = [place for place, token in enumerate(best) if token not in self.ends]
            going, best = [going[place] for place in kept], [best[place] for place in kept]
            for row, token in zip(going, best, strict=True):
                written[row].append(token)
            if not going or left == 1:
                break
            decoder.keep(kept)
            logits = decoder.step(best)
        return written


def is_own(name: str) -> bool:
    """Whether a cache input holds the decoder's own keys or values, which grow; the encoder's stay."""
    return name.startswith(PAST) and ".decoder." in name
