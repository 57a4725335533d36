"""What one adapted layer computes, measured: the weight and bias it stands for, or that it is none.

A layer that PEFT adapted is asked what it does to zero and to the unit vectors. If it is affine in its input, that is its
weight and bias, whatever the method is called; if random inputs disagree, no weight expresses it and it is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import UnsupportedAdapterError
from ..checkpoint import Checkpoint
from ..edits import Array

#: max |layer(x) - (W x + b)| relative to max |layer(x)| on random inputs, in float64. Some methods compute in float32
#: inside (C3A's FFT, DEFT's QR), which costs up to 1e-6; a router or a non-linearity costs more than 1e-3.
AFFINE = 1e-5


def _affine(layer: Any, site: str, checkpoint: Checkpoint) -> tuple[Array, Array]:
    """Weight ``[out, in]`` and bias ``[out]`` of an adapted linear layer, checked on random inputs."""
    import torch

    base = layer.get_base_layer()
    inputs = base.in_features if isinstance(base, torch.nn.Linear) else base.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, inputs, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        try:
            bias = layer(torch.zeros(1, 1, inputs, dtype=torch.float64))[0, 0]
            weight = (layer(torch.eye(inputs, dtype=torch.float64)[None])[0] - bias).T
            expected, again = layer(x), layer(x)
        except (RuntimeError, ValueError) as error_in_peft:
            first = str(error_in_peft).strip().splitlines()[0]
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: {checkpoint.peft_type} at {site} cannot be run on its own in PEFT: {first}"
            ) from error_in_peft
        error = float((expected - (x @ weight.T + bias)).abs().max() / expected.abs().max().clamp_min(1e-30))
        repeated = float((again - expected).abs().max())
    if not error <= AFFINE or repeated > AFFINE:
        why = (
            "gives another result each time"
            if repeated > AFFINE
            else f"is not a linear map of its input (off by {error:.1e})"
        )
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: {checkpoint.peft_type} at {site} {why}, so no change of weights expresses it; it can be "
            "neither swapped nor merged"
        )
    return weight.numpy(), bias.numpy()


#: Impulses that are sent through an adapted convolution at a time.
_IMPULSES = 256


def _affine_conv(layer: Any, site: str, checkpoint: Checkpoint) -> tuple[Array, Array]:
    """Weight ``[out, in / groups, *kernel]`` and bias ``[out]`` of an adapted convolution, checked on random inputs.

    Single pixels are sent through it, one for each place of the first window that lies inside the image.
    """
    import torch

    base = layer.get_base_layer()
    if any(d != 1 for d in base.dilation) or isinstance(base.padding, str) or base.padding_mode != "zeros":
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: {checkpoint.peft_type} adapts {site}, a convolution with dilation {base.dilation} and padding "
            f"{base.padding!r} ({base.padding_mode}), whose change is not measured"
        )
    kernel, channels = tuple(base.kernel_size), base.in_channels
    window = [-(-p // s) for p, s in zip(base.padding, base.stride, strict=True)]  # the first one without padding
    start = [u * s - p for u, s, p in zip(window, base.stride, base.padding, strict=True)]
    size = [first + k + p for first, k, p in zip(start, kernel, base.padding, strict=True)]
    places = list(np.ndindex(channels, *kernel))
    weight = torch.zeros(base.out_channels, channels, *kernel, dtype=torch.float64)
    with torch.no_grad():
        bias = layer(torch.zeros(1, channels, *size, dtype=torch.float64))[(0, slice(None), *window)]
        for begin in range(0, len(places), _IMPULSES):
            chunk = places[begin : begin + _IMPULSES]
            images = torch.zeros(len(chunk), channels, *size, dtype=torch.float64)
            for row, (channel, *at) in enumerate(chunk):
                images[(row, channel, *(first + i for first, i in zip(start, at, strict=True)))] = 1.0
            seen = layer(images)[(slice(None), slice(None), *window)] - bias
            for row, place in enumerate(chunk):
                weight[(slice(None), *place)] = seen[row]
        x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        convolve = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[len(kernel)]
        expected, again = layer(x), layer(x)
        found = convolve(x, weight, bias, stride=base.stride, padding=base.padding)
        error = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= AFFINE or float((again - expected).abs().max()) > AFFINE:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: {checkpoint.peft_type} at {site} is not a convolution of its input (off by {error:.1e}), so no "
            "change of weights expresses it; it can be neither swapped nor merged"
        )
    part = channels // base.groups
    own = torch.stack([row[(o * base.groups // base.out_channels) * part :][:part] for o, row in enumerate(weight)])
    if base.groups > 1 and float(weight.abs().sum() - own.abs().sum()) > AFFINE * float(own.abs().sum()):
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: {checkpoint.peft_type} at {site} mixes the groups of a grouped convolution, whose weight has no "
            "place for that; it can be neither swapped nor merged through PEFT"
        )
    return own.numpy(), bias.numpy()


def whole_weight(module: Any, layer: Any, site: str, checkpoint: Checkpoint) -> tuple[Array, Array | None]:
    """The weight of an adapted layer, ``[out, in]`` where it is linear, and its bias (an embedding has none)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, torch.nn.Embedding):
        with torch.no_grad():
            return module(torch.arange(layer.num_embeddings)).numpy(), None
    if isinstance(layer, (torch.nn.Linear, Conv1D)):
        return _affine(module, site, checkpoint)
    if isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d)):
        return _affine_conv(module, site, checkpoint)
    raise UnsupportedAdapterError(
        f"{checkpoint.source}: {checkpoint.peft_type} adapts {site}, a {type(layer).__name__}; linear layers, "
        "convolutions and embeddings are lowered through PEFT, other kinds are not yet"
    )
