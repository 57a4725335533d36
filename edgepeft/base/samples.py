"""What a base takes as input, by kind: tokens, images, audio features; and random samples of each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..bundle.slots import Dim
from ..errors import CaptureError
from .forward_inputs import box_shape
from .lengths import CAPTURE_BUDGET, shapes_that_matter
from .ragged import SHAPES, ragged_batches

Shapes = dict[str, tuple[Dim, ...]]

#: Tensors of tokens, ``[batch, sequence]``.
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
#: The dimension of a wave: samples of sound.
SAMPLES = "sample_length"
#: Samples for each token of a batch's shape: what the convolutions of wav2vec 2.0 make one frame of, and its first frame.
_SAMPLES_A_FRAME, _FIRST_FRAME = 320, 400
_TEXT: tuple[Dim, ...] = ("batch_size", "sequence_length")


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (int(value), int(value))


def _image(config: Any, batch: str) -> tuple[Dim, ...]:
    vision = getattr(config, "vision_config", config)
    # Networks of convolutions take any size; the config of some (ResNet) then names none.
    return (batch, int(getattr(vision, "num_channels", 3)), *_pair(getattr(vision, "image_size", None) or 224))


def _sound(config: Any) -> Shapes:
    """A spectrogram of fixed size (AST), or samples of a wave with a mask where the model was trained with one (wav2vec 2.0)."""
    bins = getattr(config, "num_mel_bins", None)
    if bins is not None and getattr(config, "max_length", None):
        return {"input_values": ("batch_size", int(config.max_length), int(bins))}
    wave: tuple[Dim, ...] = ("batch_size", SAMPLES)
    # Models whose first layer normalizes over the group of all samples were trained without a mask: zeros pad them.
    masked = getattr(config, "feat_extract_norm", "layer") == "layer"
    return {"input_values": wave, "attention_mask": wave} if masked else {"input_values": wave}


def input_shapes(model: Any) -> Shapes:
    """Inputs of a PyTorch model by name; strings are dimensions that may differ between calls.

    Tokens come first, then images and audio features. A model of both texts and images (CLIP) takes as many of either as
    it likes, so their batches have names of their own, as Optimum and transformers.js name them.
    """
    accepted = inspect.signature(model.forward).parameters
    config = model.config
    both = "input_ids" in accepted and "pixel_values" in accepted
    shapes: Shapes = {}
    if "input_ids" in accepted:
        text: tuple[Dim, ...] = ("text_batch_size", "sequence_length") if both else _TEXT
        shapes |= {"input_ids": text, "attention_mask": text}
        if "token_type_ids" in accepted and (getattr(config, "type_vocab_size", 0) or 0) > 1:
            shapes["token_type_ids"] = text
        boxes = box_shape(model, text)
        if boxes is not None:
            shapes["bbox"] = boxes
    if "pixel_values" in accepted:
        shapes["pixel_values"] = _image(config, "image_batch_size" if both else "batch_size")
    if "input_values" in accepted:
        shapes |= _sound(config)
    if "input_features" in accepted:  # Whisper: log-mel frames, two for each position of its encoder
        shapes["input_features"] = ("batch_size", int(config.num_mel_bins), 2 * int(config.max_source_positions))
    return shapes


def speech_shapes(model: Any, source: str) -> Shapes:
    """The one input of a model that writes down speech: log-mel frames of a window of fixed length, as Whisper takes them.

    Raises:
        CaptureError: The model takes sound in another form.
    """
    if getattr(model.config, "model_type", None) != "whisper":
        raise CaptureError(
            f"{source} is a {getattr(model.config, 'model_type', type(model).__name__)} model; speech is written down by models of "
            "Whisper's architecture here (WhisperForConditionalGeneration), which read log-mel frames of 30 seconds"
        )
    return input_shapes(model)


def vocabulary(config: Mapping[str, Any]) -> tuple[int, int]:
    """Vocabulary size and pad token id in a ``config.json``; ``(1, 0)`` for a model without tokens."""
    text = config.get("text_config") or {}
    size = config.get("vocab_size") or text.get("vocab_size") or 1
    pad = config.get("pad_token_id")
    return int(size), int(pad if pad is not None else text.get("pad_token_id") or 0)


def model_shapes(model: Any, inputs: Shapes, max_length: int | None) -> tuple[tuple[int, int], ...]:
    """Rows and tokens of the batches that a graph of a PyTorch ``model`` is compared on."""
    if "input_ids" not in inputs:
        return SHAPES
    parameters = sum(p.numel() for p in model.parameters())
    return shapes_that_matter(model.config.to_dict(), max_length, parameters, CAPTURE_BUDGET)


def _boxes(rng: np.random.Generator, mask: np.ndarray, numbers: Dim) -> np.ndarray:
    """A box on the page for each token, ``[batch, sequence, numbers]``: two corners in thousandths, or points of 0 to 1."""
    if numbers == 4:
        corners = np.sort(rng.integers(0, 1001, (*mask.shape, 2, 2)), axis=2).reshape(*mask.shape, 4)
        found: np.ndarray = corners.astype(np.int64) * mask[..., None]
        return found
    return rng.random((*mask.shape, int(numbers)), np.float32) * mask[..., None].astype(np.float32)


def random_batches(
    inputs: Mapping[str, tuple[Dim, ...]],
    *,
    vocab: int,
    pad_id: int,
    max_length: int | None = None,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    seed: int = 0,
) -> list[dict[str, np.ndarray]]:
    """One batch for each ``(rows, tokens)`` of ``shapes``: ragged padded tokens, standard normal images and features.

    Where texts and images have batches of their own, there is one image more than there are texts.
    """
    batches = ragged_batches(
        vocab=vocab, pad_id=pad_id, input_names=list(inputs), max_length=max_length, shapes=shapes, seed=seed
    )
    rng = np.random.default_rng(seed + 1)
    for batch, (rows, length) in zip(batches, shapes, strict=True):
        samples = _FIRST_FRAME + _SAMPLES_A_FRAME * length
        sizes = {"batch_size": rows, "image_batch_size": rows + 1, "sequence_length": length, SAMPLES: samples}
        if inputs.get("attention_mask", ())[-1:] == (SAMPLES,):
            ends = [max(_FIRST_FRAME, samples - 3 * row * _SAMPLES_A_FRAME) for row in range(rows)]
            batch["attention_mask"] = (np.arange(samples) < np.array(ends)[:, None]).astype(np.int64)
        if "bbox" in inputs:
            batch["bbox"] = _boxes(rng, batch["attention_mask"], inputs["bbox"][-1])
        for name, dims in inputs.items():
            if name not in batch:
                shape = tuple(sizes.get(dim, rows) if isinstance(dim, str) else dim for dim in dims)
                batch[name] = rng.standard_normal(shape).astype(np.float32)
    return [{name: batch[name] for name in inputs} for batch in batches]


def bundle_batches(bundle: Bundle, shapes: tuple[tuple[int, int], ...] | None = None) -> list[dict[str, np.ndarray]]:
    """Batches of random inputs that fit a bundle's base, tokens ragged and padded; by default of the lengths that matter."""
    config = bundle.read_json("config.json")
    vocab, pad_id = vocabulary(config)
    manifest = bundle.manifest
    if shapes is None:
        text = any(value.name == "input_ids" for value in manifest.inputs)
        shapes = shapes_that_matter(config, manifest.max_length, manifest.base.parameters) if text else SHAPES
    return random_batches(
        {value.name: value.shape for value in bundle.manifest.inputs},
        vocab=vocab,
        pad_id=pad_id,
        max_length=bundle.manifest.max_length,
        shapes=shapes,
    )
