"""What every parameter of a base becomes in PEFT's adapted model of it, measured layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import UnsupportedAdapterError
from ..base_weights import BaseWeights
from ..checkpoint import Checkpoint
from ..edits import Array
from ..layout import conv1d_weights
from .affine import whole_weight
from .load import PREFIX

#: Changes of a parameter below this share of it are rounding in PEFT's own arithmetic, not training.
UNCHANGED = 1e-6


@dataclass(frozen=True)
class Effective:
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

    def done(self) -> Effective:
        self.check_tied()
        changed = {
            name: value
            for name, value in self.values.items()
            if value.shape != self.original[name].shape
            or float(np.linalg.norm(value - self.original[name]))
            > UNCHANGED * float(np.linalg.norm(self.original[name]))
        }
        return Effective(changed=changed, adapted=self.adapted, base=self.original, canonical=self.canonical)


def effective_parameters(base: Any, model: Any, checkpoint: Checkpoint, weights: BaseWeights | None) -> Effective:
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
