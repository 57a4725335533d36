"""Encoder-decoder models as two graphs: what reads the input once, and what writes one token after another.

``encoder_model.onnx`` gives the encoder's states and, since they depend on nothing else, the keys and values that every
decoder layer reads them through. ``decoder_with_past_model.onnx`` takes those and its own cache, which begins empty, so
that one graph serves the first token and the others; inputs and outputs are named as Optimum names them. A model that reads
sound (Whisper) takes windows of one length: it has no mask, and its cross-attention a fixed number of places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ...bundle.cache_names import PAST, PRESENT, is_present
from ...graph.passes.drop_origins import DropOrigins
from ...graph.passes.split_fused_matmul import SplitFusedMatMul
from ...graph.run import open_graph
from ..captured import Captured
from ..load import Loaded, sample_batches
from ..markers import Built, capture_marked
from ..parity import output_difference
from ..parity_seq2seq import following_tokens, reference_logits, teacher_forced
from ..rounding import judge, rounding_noise
from .traced import OPSET, cannot_be_traced, silenced_exporter


def _modules(model: Any, *, texts: bool) -> tuple[Any, Any]:
    """The two parts of ``model`` as PyTorch modules of plain tensors; ``texts``: whether texts are read."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    class Encoder(torch.nn.Module):
        """``last_hidden_state``, and ``present.<layer>.encoder.key`` / ``value``."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def read(self, inputs: dict[str, Any], mask: dict[str, Any]) -> dict[str, Any]:
            (read,) = inputs.values()
            states = self.model.get_encoder()(**inputs, **mask).last_hidden_state
            # One step of the decoder fills the cache that is wanted; the rest of the step falls away when it is traced.
            result = self.model(
                decoder_input_ids=torch.zeros_like(read.flatten(1)[:, :1], dtype=torch.int64),
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
                use_cache=True,
                **mask,
            )
            outputs = {"last_hidden_state": states}
            for index, layer in enumerate(result.past_key_values.cross_attention_cache.layers):
                outputs[f"{PRESENT}{index}.encoder.key"] = layer.keys
                outputs[f"{PRESENT}{index}.encoder.value"] = layer.values
            return outputs

    class TextEncoder(Encoder):
        def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
            return self.read({"input_ids": input_ids}, {"attention_mask": attention_mask})

    class SoundEncoder(Encoder):
        def forward(self, input_features: Any) -> dict[str, Any]:
            return self.read({"input_features": input_features}, {})

    class Decoder(torch.nn.Module):
        """``logits``, and ``present.<layer>.decoder.key`` / ``value``; ``past`` holds four tensors a layer."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def write(self, input_ids: Any, past: list[Any], mask: dict[str, Any]) -> dict[str, Any]:
            own, cross = DynamicCache(), DynamicCache()
            for index in range(len(past) // 4):
                own.update(past[4 * index], past[4 * index + 1], index)
                cross.update(past[4 * index + 2], past[4 * index + 3], index)
            cache = EncoderDecoderCache(own, cross)
            for index in range(len(past) // 4):
                cache.is_updated[index] = True
            keys = past[2]  # of the encoder's states only the shape is read any more
            states = torch.zeros(keys.shape[0], keys.shape[2], self.model.config.d_model)
            result = self.model(
                decoder_input_ids=input_ids,
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                past_key_values=cache,
                use_cache=True,
                **mask,
            )
            outputs = {"logits": result.logits}
            for index, layer in enumerate(result.past_key_values.self_attention_cache.layers):
                outputs[f"{PRESENT}{index}.decoder.key"] = layer.keys
                outputs[f"{PRESENT}{index}.decoder.value"] = layer.values
            return outputs

    class TextDecoder(Decoder):
        def forward(self, input_ids: Any, encoder_attention_mask: Any, past: list[Any]) -> dict[str, Any]:
            return self.write(input_ids, past, {"attention_mask": encoder_attention_mask})

    class SoundDecoder(Decoder):
        def forward(self, input_ids: Any, past: list[Any]) -> dict[str, Any]:
            return self.write(input_ids, past, {})

    return (TextEncoder().eval(), TextDecoder().eval()) if texts else (SoundEncoder().eval(), SoundDecoder().eval())


def _trace(module: Any, inputs: Mapping[str, Any], dynamic: Mapping[str, Any], *, fusions: bool) -> ir.Model:
    import torch
    from transformers.exporters import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    config = OnnxConfig(opset_version=OPSET, dynamic_shapes=dict(dynamic), ort_fusions="cpu" if fusions else None)
    try:
        with silenced_exporter(), torch.no_grad():
            program: ir.Model = OnnxExporter().export(module, dict(inputs), config=config).program
    except Exception as error:  # the exporter raises whatever torch, onnxscript or a model's own code raises
        raise cannot_be_traced(module.model, error) from error
    DropOrigins()(program)
    SplitFusedMatMul()(program)  # recipes and slots know a tied head by its MatMul
    return program


def _name(graph: ir.Model, rename: Mapping[str, str]) -> None:
    """Names of inputs and of dimensions as Optimum gives them."""
    batch, tokens = "batch_size", {"input_ids": "sequence_length", "attention_mask": "sequence_length",
                                   "encoder_attention_mask": "encoder_sequence_length"}  # fmt: skip
    known: dict[str, str] = {}
    for value in graph.graph.inputs:
        value.name = rename.get(value.name or "", value.name)
        name = value.name or ""
        second = tokens.get(name) or ("encoder_sequence_length" if ".encoder." in name else "past_sequence_length")
        axis = 1 if name in tokens else 2
        for place, label in ((0, batch), (axis, second)):
            dim = value.shape[place] if value.shape is not None else None
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                known.setdefault(dim.value, label)
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        grown = "past_sequence_length + sequence_length"
        dims = [dim if isinstance(dim, int) else known.get(str(dim.value), grown) for dim in value.shape or ()]
        value.shape = ir.Shape(dims)
    for value in graph.graph.initializers.values():
        if value.const_value is not None:
            value.shape = ir.Shape(list(value.const_value.numpy().shape))


def _trace_both(loaded: Loaded, *, fusions: bool) -> tuple[ir.Model, ir.Model]:
    import torch

    texts = "input_ids" in loaded.inputs
    encoder, decoder = _modules(loaded.model, texts=texts)
    free = torch.export.Dim.DYNAMIC
    sample = {name: torch.from_numpy(array) for name, array in sample_batches(loaded, shapes=((2, 8),))[0].items()}
    tokens = {0: free, 1: free}
    first = _trace(encoder, sample, dict.fromkeys(sample, tokens if texts else {0: free}), fusions=fusions)
    with torch.no_grad():
        cross = [array for name, array in encoder(**sample).items() if is_present(name)]
    layers = len(cross) // 2
    heads, size = cross[0].shape[1], cross[0].shape[3]
    past, names = [], []
    for layer in range(layers):
        past += [torch.randn(2, heads, 4, size), torch.randn(2, heads, 4, size), cross[2 * layer], cross[2 * layer + 1]]
        names += [f"{PAST}{layer}.{side}.{kind}" for side in ("decoder", "encoder") for kind in ("key", "value")]
    mask = {"encoder_attention_mask": sample["attention_mask"]} if texts else {}
    grown = {0: free, 2: free}
    second = _trace(
        decoder,
        {"input_ids": torch.arange(6).reshape(2, 3), **mask, "past": past},
        {
            "input_ids": tokens,
            **dict.fromkeys(mask, tokens),
            "past": [grown if texts or place % 4 < 2 else {0: free} for place in range(len(past))],
        },
        fusions=fusions,
    )
    _name(first, {})
    _name(second, {f"past.{index}": name for index, name in enumerate(names)})
    return first, second


def _parity(built: Built, loaded: Loaded) -> float:
    encoder, decoder = built.graphs
    config = loaded.model.config
    shapes = {v.name or "": [d if isinstance(d, int) else str(d) for d in v.shape or ()] for v in decoder.graph.inputs}
    batches = sample_batches(loaded)
    start = int(config.decoder_start_token_id)
    forced = [following_tokens(inputs, int(config.vocab_size), start) for inputs in batches]

    def references(module: Any) -> list[np.ndarray]:
        return [reference_logits(module, *pair) for pair in zip(batches, forced, strict=True)]

    def difference(mine: list[np.ndarray], theirs: list[np.ndarray]) -> float:
        pairs = zip(mine, theirs, strict=True)
        return max(output_difference({"logits": a}, {"logits": b}, None) for a, b in pairs)

    with open_graph(encoder) as encode, open_graph(decoder) as decode:
        found = [teacher_forced(encode, decode, *pair, shapes) for pair in zip(batches, forced, strict=True)]
    expected = references(loaded.model)
    worst = difference(found, expected)
    judge("logits", worst, lambda: rounding_noise(loaded.model, references, difference, expected))
    return worst


def build(loaded: Loaded, *, fusions: bool) -> Captured:
    """Both graphs of ``loaded``; raises :class:`CaptureError` where it cannot be traced."""
    return capture_marked(
        loaded,
        lambda: Built(_trace_both(loaded, fusions=fusions)),
        lambda built: _parity(built, loaded),
    )
