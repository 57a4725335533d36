"""Lowering through PEFT itself: what an adapted model computes is measured, not looked up.

Every adapted layer is measured (:mod:`~edgepeft.adapters.through_peft.affine`), and the base with the
weights found must compute what the whole adapted model computes. PEFT's own merges are not used: some of them are wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ...errors import AdapterMismatchError, MissingExtraError, UnsupportedAdapterError
from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Adapter, Array, Exactness, LowRank, Override, SiteEdit
from ..layout import conv1d_weights
from ..methods.svd import factor, not_worth_swapping, worst
from .affine import AFFINE
from .effective import Effective, effective_parameters
from .load import fit_heads, load_in_peft


def _outputs(model: Any, inputs: Mapping[str, Any]) -> list[Array]:
    import torch

    with torch.no_grad():
        result = model(**inputs)
    tensors = result.to_tuple() if hasattr(result, "to_tuple") else result
    return [tensor.numpy() for tensor in tensors if isinstance(tensor, torch.Tensor)]


def _sample(model: Any) -> dict[str, Any]:
    """One padded batch of what ``model`` reads: tokens, an image, audio features."""
    import inspect

    import torch

    accepted = inspect.signature(model.forward).parameters
    config = model.config
    inputs: dict[str, Any] = {}
    if "input_ids" in accepted:
        ids = torch.arange(18).reshape(2, 9) * 7 % int(config.get_text_config().vocab_size)
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        inputs |= {"input_ids": ids, "attention_mask": mask}
        if "decoder_input_ids" in accepted:
            inputs["decoder_input_ids"] = ids[:, :5]
    generator = torch.Generator().manual_seed(0)
    if "pixel_values" in accepted:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or 64
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        inputs["pixel_values"] = torch.randn(
            2, getattr(vision, "num_channels", 3), height, width, generator=generator, dtype=torch.float64
        )
    if "input_features" in accepted:
        frames = 2 * config.max_source_positions
        inputs["input_features"] = torch.randn(2, config.num_mel_bins, frames, generator=generator, dtype=torch.float64)
        if "decoder_input_ids" in accepted:
            inputs["decoder_input_ids"] = torch.arange(10).reshape(2, 5) * 7 % int(config.vocab_size)
    return inputs


def _verify(base: Any, model: Any, effective: Effective, checkpoint: Checkpoint) -> None:
    """Run ``base`` with the changed parameters against the unmerged ``model``; what else PEFT does would show."""
    import torch

    plain = base.double()
    turned = conv1d_weights(plain)
    with torch.no_grad():
        for name, parameter in effective.canonical.items():
            if parameter in effective.changed:
                array = effective.changed[parameter]
                value = torch.from_numpy(np.array(array.T if name in turned else array, dtype=np.float64))
                path, _, leaf = name.rpartition(".")
                setattr(plain.get_submodule(path), leaf, torch.nn.Parameter(value))  # its own, even where it was tied
    inputs = _sample(plain)
    for mine, reference in zip(_outputs(plain, inputs), _outputs(model, inputs), strict=True):
        scale = max(1.0, float(np.abs(reference).max()))
        if mine.shape != reference.shape or not float(np.abs(mine - reference).max()) <= AFFINE * scale:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: {checkpoint.peft_type} changes more than weights: the base with its changed weights "
                "computes something else than PEFT, so it can be neither swapped nor merged"
            )


def lower_with_peft(
    name: str,
    checkpoint: Checkpoint,
    base: Any,
    *,
    method: str,
    weights: BaseWeights | None = None,
    mode: Literal["swap", "merge"] = "swap",
    max_rank: int | None = None,
) -> Adapter:
    """The canonical form of any adapter that is a change of weights, by running it in PEFT over ``base``.

    ``base`` is the PyTorch model, which is copied and left alone; ``weights`` are its parameters as captured, which may
    hold tied ones apart. For ``swap`` each site's change is factored by SVD; where
    the factors would hold more than the weights themselves, or for ``merge``, the adapter brings whole weights and can
    only be merged. Raises :class:`UnsupportedAdapterError` for what is not a change of weights.
    """
    try:
        import peft  # noqa: F401 - asked for here, so that the message names the extra
    except ImportError as error:
        raise MissingExtraError(f"lowering {method} needs: pip install 'edgepeft[export]' ({error})") from error
    plain = copy.deepcopy(base).eval()
    fit_heads(plain, checkpoint)
    model = load_in_peft(copy.deepcopy(plain), checkpoint)
    effective = effective_parameters(plain, model, checkpoint, weights)
    _verify(plain, model, effective, checkpoint)
    factors: dict[str, LowRank] = {}
    exactnesses: list[Exactness] = []
    reason = ""
    if mode == "swap":
        for parameter, linear in effective.adapted.items():
            if not linear or parameter not in effective.changed:
                continue
            delta = effective.changed[parameter] - effective.base[parameter]
            site = parameter.removesuffix(".weight")
            if getattr(base.get_submodule(site), "groups", 1) > 1:
                continue  # each group is a map of its own: the weight, which is small, is replaced
            factors[site], exactness = factor(delta.reshape(len(delta), -1).T, max_rank=max_rank)
            exactnesses.append(exactness)
        reason = not_worth_swapping(factors)
    if mode == "merge" or reason:
        factors, exactnesses = {}, []
    overrides = {
        parameter: Override(value)
        for parameter, value in effective.changed.items()
        if parameter.removesuffix(".weight") not in factors
    }
    record = checkpoint.record
    result = Adapter(
        name=name,
        method=method,
        sites={site: SiteEdit(low_rank=low_rank) for site, low_rank in factors.items() if low_rank.rank},
        overrides=overrides,
        labels=checkpoint.labels,
        base_identity=record.get("base_identity"),
        base_name=checkpoint.config.get("base_model_name_or_path"),
        source=checkpoint.source,
        checkpoint_sha256=checkpoint.sha256,
        notes=(f"lowered through PEFT: {worst(exactnesses)}",) if exactnesses else (),
        exactness=worst(exactnesses),
        merge_only=reason or ("it was read for merging" if mode == "merge" else ""),
    )
    if not result.sites and not result.overrides:
        raise AdapterMismatchError(f"{checkpoint.source} changes no parameter of this base: was it trained?")
    return result
