"""Methods that scale activations or replace parameters: IA3, BEFT, LN tuning, trainable tokens."""

from __future__ import annotations

import numpy as np

from ...errors import AdapterMismatchError
from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Adapter, InGain, OutGain, Override, SiteEdit
from .lowering import Consumer
from .trained_tokens import take_rows


def lower_ia3(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """IA3 (Liu et al. 2022, arXiv:2205.05638; ``tuners/ia3/layer.py``).

    Feed-forward sites scale their input: ``y = W (l x) + b``. The others scale the whole output: ``y = l (W x + b)``, so
    the gain covers the bias too, which is overridden by ``l b``.
    """
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({"fan_in_fan_out", "feedforward_modules", "init_ia3_weights"})
    for site, (gain,) in consumer.matrices("ia3_l").items():
        if gain.ndim != 2 or 1 not in gain.shape or gain.size == 1:
            raise consumer.needs_peft(f"site {site}: ia3_l of shape {gain.shape} does not say which side it scales")
        if gain.shape[0] == 1:
            consumer.sites[site] = SiteEdit(in_gain=InGain(gain.reshape(-1)))
            continue
        scale = gain.reshape(-1)
        consumer.sites[site] = SiteEdit(out_gain=OutGain(scale))
        bias = consumer.base_bias(site)
        if bias is not None:
            consumer.shift_bias(site, (scale - 1.0) * bias)
    return consumer.finish(name, "IA3")


def lower_beft(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """BEFT (``tuners/beft/layer.py``): ``y = W x + b + d``."""
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({"init_weights"})
    for site, (shift,) in consumer.matrices("beft_bias").items():
        consumer.shift_bias(site, shift.reshape(-1))
    return consumer.finish(name, "BEFT")


def lower_ln_tuning(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """LN tuning (Zhao et al. 2023, arXiv:2312.11420; ``tuners/ln_tuning/layer.py``): a norm's parameters are replaced."""
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options(())
    for site, parts in consumer.by_site("ln_tuning_layers.weight", "ln_tuning_layers.bias").items():
        for part, tensor in parts.items():
            parameter = f"{site}.{part.removeprefix('ln_tuning_layers.')}"
            base = weights(parameter)
            if base is None or base.shape != tensor.shape:
                raise AdapterMismatchError(
                    f"{checkpoint.source} replaces {parameter} {tensor.shape}; the base has "
                    f"{'no such parameter, or this bundle no slot for it' if base is None else base.shape}"
                )
            consumer.overrides[parameter] = Override(tensor)
    return consumer.finish(name, "LN tuning")


def lower_trainable_tokens(name: str, checkpoint: Checkpoint, weights: BaseWeights) -> Adapter:
    """Trainable tokens (``tuners/trainable_tokens/layer.py``): rows of the embedding are replaced, in ``token_indices``."""
    consumer = Consumer(checkpoint, weights)
    consumer.allow_options({"token_indices", "init_weights"})
    rows = [int(index) for index in checkpoint.config.get("token_indices") or ()]
    trained = {site: values for site, (values,) in consumer.matrices("trainable_tokens_delta").items()}
    known = [values for site, values in trained.items() if weights(f"{site}.weight") is not None]
    heads = {head for site in trained if (head := weights.tied_head(f"{site}.weight")) is not None}
    for site, values in trained.items():
        again = f"{site}.weight" in heads or weights(f"{site}.weight") is None
        if again and any(values is not other and np.array_equal(values, other) for other in known):
            continue  # a head tied to the embedding, saved once more: one parameter serves both
        take_rows(consumer, site, rows, values)
    return consumer.finish(name, "Trainable tokens")
