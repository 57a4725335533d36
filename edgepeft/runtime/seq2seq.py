"""The decoder of an encoder-decoder bundle: forced tokens, and greedy generation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BundleError, InputError

if TYPE_CHECKING:
    from .active import ActiveAdapter
    from .session import Runtime

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
        self.pad = int(config.get("pad_token_id") or 0)

    def step(self, feeds: Mapping[str, np.ndarray], active: ActiveAdapter) -> dict[str, np.ndarray]:
        """One run of the decoder: ``input_ids``, ``encoder_attention_mask`` and caches to logits and caches."""
        import onnxruntime as ort

        values: dict[str, Any] = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        slots = self._runtime.slot_values(active)
        values |= {name: value for name, value in slots.items() if name in self._slots}
        found = self.session.run_with_ort_values(self._outputs, values, None)
        return {name: value.numpy() for name, value in zip(self._outputs, found, strict=True)}

    def empty(self, encoded: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """The caches before the first token: the encoder's keys and values, and no tokens of the decoder's own."""
        cache = {PAST + name.removeprefix(PRESENT): a for name, a in encoded.items() if name.startswith(PRESENT)}
        own = {
            name: np.zeros((rows, int(shape[1]), 0, int(shape[3])), np.float32)
            for name, shape in self.shapes.items()
            if name.startswith(PAST) and ".decoder." in name
        }
        return {**cache, **own}

    def greedy(self, inputs: Mapping[str, np.ndarray], max_new_tokens: int, active: ActiveAdapter) -> list[list[int]]:
        """The most likely tokens of each row, up to its end token (left out) or ``max_new_tokens``."""
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
        rows = len(inputs["input_ids"])
        cache = self.empty(self._runtime.run_arrays(inputs, active), rows)
        tokens = np.full((rows, 1), self.start, np.int64)
        written: list[list[int]] = [[] for _ in range(rows)]
        going = [True] * rows
        for _ in range(max_new_tokens):
            found = self.step(
                {"input_ids": tokens, "encoder_attention_mask": inputs["attention_mask"], **cache}, active
            )
            cache |= {PAST + name.removeprefix(PRESENT): a for name, a in found.items() if name.startswith(PRESENT)}
            best = found["logits"][:, -1].argmax(axis=-1)
            for row, token in enumerate(best.tolist()):
                going[row] = going[row] and token not in self.ends
                if going[row]:
                    written[row].append(token)
            if not any(going):
                break
            tokens = np.where(going, best, self.pad)[:, None].astype(np.int64)
        return written


def write_texts(runtime: Runtime, texts: Sequence[Any], max_new_tokens: int) -> list[str]:
    """What the model writes for each text, greedily, with the adapter in use."""
    rows = runtime.generate_ids(runtime.encode(texts), max_new_tokens=max_new_tokens)
    return [runtime.encoder.decode(row) for row in rows]
