"""Lowering through PEFT itself: what an adapted model computes is measured, not looked up.

Every adapted layer is measured (:mod:`~edgepeft.adapters.through_peft.affine`), and the base with the
weights found must compute what the whole adapted model computes. PEFT's own merges are not used: some of them are wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...errors import AdapterMismatchError, MissingExtraError, UnsupportedAdapterError
from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Adapter, Array, Exactness, LowRank, Override, SiteEdit
from ..layout import conv1d_weights
from ..methods.svd import factor, not_worth_swapping, worst
from .affine import AFFINE, whole_weight
from .load import PREFIX, fit_heads, load_in_peft

#: Changes of a parameter below this share of it are rounding in PEFT's own arithmetic, not training.
UNCHANGED = 1e-6


@dataclass(frozen=True)
class _Effective:
    """What the adapted model computes: whole parameters that changed, and those among them that a tuner layer adapts."""

    changed: dict[str, Array]
    adapted: dict[str, bool]  # parameter → whether it is one linear map, which takes factors
    base: dict[str, Array]
    canonical: dict[str, str]  # name in PyTorch → name of the parameter that stands for it


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
        weight, bias = whole_weight(module, layer, site, self.checkpoint)
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
        site = path.removeprefix(PREFIX)
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
        name = path.removeprefix(PREFIX).replace(".base_layer.", ".")
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
    model = load_in_peft(copy.deepcopy(plain), checkpoint)
    effective = _effective(plain, model, checkpoint, weights)
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
