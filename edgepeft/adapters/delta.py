"""Lowering through PEFT itself: what an adapted layer computes is measured, not looked up.

A layer that PEFT adapted is asked what it does to zero and to the unit vectors. If it is affine in its input, that is its
weight and bias, whatever the method is called; if random inputs disagree, no weight expresses it and it is refused. PEFT's
own merges are not used: some of them are wrong.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import AdapterError, AdapterMismatchError, MissingExtraError, UnsupportedAdapterError
from .checkpoint import Checkpoint
from .consume import BaseWeights
from .form import Adapter, Array, Exactness, LowRank, Override, SiteEdit
from .layout import conv1d_weights
from .svd import factor, not_worth_swapping, worst

_PREFIX = "base_model.model."
#: max |layer(x) - (W x + b)| relative to max |layer(x)| on random inputs, in float64. Some methods compute in float32
#: inside (C3A's FFT, DEFT's QR), which costs up to 1e-6; a router or a non-linearity costs more than 1e-3.
AFFINE = 1e-5
#: Changes of a parameter below this share of it are rounding in PEFT's own arithmetic, not training.
UNCHANGED = 1e-6


@dataclass(frozen=True)
class _Effective:
    """What the adapted model computes: whole parameters that changed, and those among them that a tuner layer adapts."""

    changed: dict[str, Array]
    adapted: dict[str, bool]  # parameter → whether it is one linear map, which takes factors
    base: dict[str, Array]
    canonical: dict[str, str]  # name in PyTorch → name of the parameter that stands for it


def fit_heads(base: Any, checkpoint: Checkpoint) -> None:
    """Give ``modules_to_save`` of ``base`` the sizes they have in the checkpoint, so that PEFT can load it."""
    import torch

    parameters = dict(base.named_parameters())
    for key, tensor in checkpoint.tensors.items():
        name = re.sub(r"\.modules_to_save\.(default\.)?", ".", key).removeprefix("base_model.")
        parameter = parameters.get(name)
        if parameter is not None and tuple(parameter.shape) != tensor.shape and parameter.ndim == tensor.ndim:
            module = base.get_submodule(name.rpartition(".")[0])
            setattr(module, name.rpartition(".")[2], torch.nn.Parameter(torch.zeros(tensor.shape)))
            if hasattr(module, "out_features"):
                module.out_features = tensor.shape[0]


def _load(base: Any, checkpoint: Checkpoint) -> Any:
    """PEFT's model over ``base``, in float64 and eval mode; every tensor of the checkpoint must have arrived."""
    import torch
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what is checked below, and of transformers' deprecations
        try:
            model = PeftModel.from_pretrained(base, str(checkpoint.path)).eval()
            check_arrived(checkpoint, model)
        except ImportError as error:
            raise MissingExtraError(f"PEFT needs another package for {checkpoint.peft_type}: {error}") from error
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AdapterError(f"PEFT cannot load {checkpoint.source} over this base: {first}") from error
    model.double()
    for module in model.modules():
        if vars(module).get("dtype") is torch.float32:  # AdaMSS casts its input to a type of its own
            module.dtype = torch.float64
    return model


def check_arrived(checkpoint: Checkpoint, model: Any) -> None:
    """Raise :class:`AdapterError` where PEFT's ``model`` lacks a tensor of ``checkpoint``, or has one that is not in it.

    PEFT itself passes over names that it does not know, and leaves what is missing at its initial numbers.
    """
    from peft import get_peft_model_state_dict

    loaded = {name.removeprefix(_PREFIX): tensor for name, tensor in get_peft_model_state_dict(model).items()}
    lost = sorted(
        name
        for name, tensor in checkpoint.tensors.items()
        if name not in loaded
        or tuple(loaded[name].shape) != tensor.shape
        or not np.allclose(loaded[name].detach().float().numpy(), tensor, rtol=1e-6, atol=0)
    )
    if lost:
        raise AdapterError(
            f"{checkpoint.source}: PEFT did not take {len(lost)} tensor(s) of the {checkpoint.peft_type} checkpoint, the first "
            f"is {lost[0]}"
        )
    fresh = sorted(set(loaded) - set(checkpoint.tensors))
    if fresh:
        raise AdapterError(
            f"{checkpoint.source}: the checkpoint lacks {fresh[0]} (and {len(fresh) - 1} more), which PEFT then leaves at its "
            "initial numbers; the file is incomplete or its config was changed"
        )


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


def _whole(module: Any, layer: Any, site: str, checkpoint: Checkpoint) -> tuple[Array, Array | None]:
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


class _Collector:
    """Gathers what every parameter of the base becomes, as the adapted model uses it."""

    def __init__(self, base: Any, checkpoint: Checkpoint, weights: BaseWeights | None) -> None:
        self.checkpoint = checkpoint
        # A tied weight has several names. Where the captured base knows them all, its ends can be edited apart.
        first = {id(p): name for name, p in base.named_parameters()}
        everything = dict(base.named_parameters(remove_duplicate=False))
        known = {name for name in everything if weights is not None and weights(name) is not None}
        self.canonical = {name: name if name in known else first[id(p)] for name, p in everything.items()}
        self.turned = conv1d_weights(base)
        self.original = {
            self.canonical[n]: (p.T if n in self.turned else p).detach().double().numpy() for n, p in everything.items()
        }
        self.values: dict[str, Array] = {}
        self.adapted: dict[str, bool] = {}
        self.at: dict[str, dict[str, Array]] = {}  # parameter → adapted site → weight

    def refuse(self, site: str, why: str) -> UnsupportedAdapterError:
        return UnsupportedAdapterError(f"{self.checkpoint.source}: {self.checkpoint.peft_type} adapts {site}, {why}")

    def take(self, name: str, parameter: Any) -> None:
        """A parameter that was trained whole."""
        self.values[name] = (parameter.T if name in self.turned else parameter).detach().numpy()

    def layer(self, site: str, module: Any, layer: Any) -> None:
        """An adapted linear layer or embedding."""
        if getattr(module, "num_experts", 1) > 1:
            raise self.refuse(
                f"{site}.{module.parameter_name}",
                "the raw parameter of several experts, together with an option that has no closed form; train them apart",
            )
        parameter = self.canonical.get(f"{site}.weight")
        if parameter is None:
            raise self.refuse(
                site, "which the base does not have as a layer with a weight; the adapter rebuilds the base"
            )
        weight, bias = _whole(module, layer, site, self.checkpoint)
        self.at.setdefault(parameter, {})[site] = weight
        self.values[parameter] = weight
        self.adapted[parameter] = bias is not None and len(self.at[parameter]) == 1
        if bias is None:
            return
        if f"{site}.bias" in self.original:
            self.values[f"{site}.bias"] = bias
        elif np.abs(bias).max() > UNCHANGED:
            raise self.refuse(site, "where it adds a bias and the base has none to replace")

    def check_tied(self) -> None:
        """A tied weight may change only where PEFT changes it at every place alike."""
        for parameter, sites in self.at.items():
            everywhere = {n.removesuffix(".weight") for n, c in self.canonical.items() if c == parameter}
            same = all(np.array_equal(weight, self.values[parameter]) for weight in sites.values())
            if everywhere != set(sites) or not same:
                site = next(iter(sites))
                others = ", ".join(sorted(everywhere - {site}))
                raise self.refuse(
                    site,
                    f"whose weight is tied to that of {others}: changing it changes both, which is not what PEFT computes (its own "
                    "merge is wrong here). Untie them and save the base first.",
                )

    def done(self) -> _Effective:
        self.check_tied()
        changed = {
            name: value
            for name, value in self.values.items()
            if value.shape != self.original[name].shape
            or float(np.linalg.norm(value - self.original[name]))
            > UNCHANGED * float(np.linalg.norm(self.original[name]))
        }
        return _Effective(changed=changed, adapted=self.adapted, base=self.original, canonical=self.canonical)


def _effective(base: Any, model: Any, checkpoint: Checkpoint, weights: BaseWeights | None) -> _Effective:
    """Every parameter of ``base`` as the adapted ``model`` uses it, where it differs."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    collector = _Collector(base, checkpoint, weights)
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        site = path.removeprefix(_PREFIX)
        if path.startswith(inside or ("\0",)):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            saved = module.modules_to_save[module.active_adapters[0]]
            for leaf, parameter in saved.named_parameters():
                collector.take(f"{site}.{leaf}", parameter)
        elif isinstance(module, TrainableTokensWrapper):
            collector.layer(site, module, module.token_adapter.get_base_layer())
        elif isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            collector.layer(site, module, module.get_base_layer())
        else:
            continue
        inside = (*inside, f"{path}.")
    for path, parameter in model.named_parameters():  # what was trained in place: bias="all"
        name = path.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if name in collector.original and name not in collector.values:
            collector.take(name, parameter)
    return collector.done()


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
    return inputs


def _verify(base: Any, model: Any, effective: _Effective, checkpoint: Checkpoint) -> None:
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
    model = _load(copy.deepcopy(plain), checkpoint)
    effective = _effective(plain, model, checkpoint, weights)
    _verify(plain, model, effective, checkpoint)
    factors: dict[str, LowRank] = {}
    found: list[Exactness] = []
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
            found.append(exactness)
        reason = not_worth_swapping(factors)
    if mode == "merge" or reason:
        factors, found = {}, []
    overrides = {
        parameter: Override(value)
        for parameter, value in effective.changed.items()
        if parameter.removesuffix(".weight") not in factors
    }
    record = checkpoint.record
    labels = tuple(record["labels"]) if record.get("labels") else None
    result = Adapter(
        name=name,
        method=method,
        sites={site: SiteEdit(low_rank=low_rank) for site, low_rank in factors.items() if low_rank.rank},
        overrides=overrides,
        labels=labels,
        base_identity=record.get("base_identity"),
        base_name=checkpoint.config.get("base_model_name_or_path"),
        source=checkpoint.source,
        checkpoint_sha256=checkpoint.sha256,
        notes=(f"lowered through PEFT: {worst(found)}",) if found else (),
        exactness=worst(found),
        merge_only=reason or ("it was read for merging" if mode == "merge" else ""),
    )
    if not result.sites and not result.overrides:
        raise AdapterMismatchError(f"{checkpoint.source} changes no parameter of this base: was it trained?")
    return result
