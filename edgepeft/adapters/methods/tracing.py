"""How single methods' layers are traced to ONNX, where PEFT's own code cannot be: facts for the registry.

Some layers make a matrix of their parameters with what ONNX lacks (a solved system, a sparse tensor), or of loops that
tracing unrolls; others change their input so (an FFT). The former are computed once and stand in the graph as constants,
the latter in plain operators that give the same numbers. They hold for the classes of peft 0.21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

#: Keys and values of each layer.
Pairs = list[tuple[Any, Any]]
#: ``step(ids, mask, positions, past)``: logits, and the keys and values after it.
Step = Callable[[Any, Any, Any, Any], tuple[Any, Pairs]]


@dataclass(frozen=True)
class Tracing:
    """What is done for one method while it is traced; nothing, where its layers are traced as they are."""

    #: Methods whose results depend on a layer's parameters alone: module below ``peft.tuners``, class, method.
    constant: tuple[tuple[str, str, str], ...] = ()
    #: What is replaced, by what: module below ``peft.tuners``, class (or none), name, replacement.
    replaced: tuple[tuple[str, str, str, Any], ...] = ()
    #: Lets the layers of the transformers model inside PEFT's run for one task, where PEFT's own model passes it on.
    for_task: Callable[[Any, int], None] | None = None
    #: A decoding step of PEFT's model, where it keeps more between tokens than the base's keys and values.
    step: Callable[[Any], Step] | None = None


#: Traced as it is.
PLAIN = Tracing()


def cache_of_pairs(pairs: Iterable[tuple[Any, Any]]) -> Any:
    """transformers' cache of keys and values, layer by layer."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for index, (keys, values) in enumerate(pairs):
        cache.update(keys, values, index)
    return cache


def pairs_of(layers: Any) -> Pairs:
    """Keys and values of a cache's ``layers``."""
    return [(layer.keys, layer.values) for layer in layers]


class _Circular:
    """C3A's block-circular convolution as a product: ``y[m, c] = sum over n, j of x[n, j] w[m, n, (j - c) mod b]``."""

    @staticmethod
    def apply(x: Any, w: Any) -> Any:
        """``x`` ``[..., n b]`` and kernels ``w`` ``[m, n, b]`` to ``[..., m b]``."""
        import torch

        m, n, b = w.shape
        places = torch.arange(b)
        blocks = w[:, :, (places[:, None] - places[None]) % b]  # [m, n, j, c]
        return x @ blocks.permute(1, 2, 0, 3).reshape(n * b, m * b)


def _reflect(self: Any, x: Any, *args: Any, **options: Any) -> Any:
    """``HRALinear.forward`` without its copy of the base's weight: the reflections change the input, ``x (W R)' = (x R') W'``."""
    for adapter in reversed([name for name in self.active_adapters if name in self.hra_u]):
        x = x @ self.get_delta_weight(adapter).t()
    return self.base_layer(x, *args, **options)


def _changed_weight(self: Any, x: Any, *args: Any, **options: Any) -> Any:
    """SHiRA's ``Linear.forward`` without its copy of the base's weight."""
    import torch

    base = self.get_base_layer()
    deltas = [self.get_delta_weight(name) for name in self.active_adapters if name in self.shira_weight]
    return torch.nn.functional.linear(x, base.weight + sum(deltas), base.bias)


def _dense_product(self: Any, z: Any, sparse: Any) -> Any:
    return z @ sparse.t()


def _route(self: Any, task_ids: Any, input_ids: Any) -> Any:
    """``PolyRouter.forward`` in eval mode, without its look at the numbers of ``task_ids``."""
    import torch

    weights = torch.sigmoid(self.module_logits[task_ids].view(-1, self.n_splits, self.n_skills))
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-12)


def _poly_for_task(model: Any, task: int) -> None:
    import torch
    from peft.tuners.poly.layer import PolyLayer

    def hook(module: Any, args: Any, options: dict[str, Any]) -> Any:
        return args, {**options, "task_ids": torch.full((args[0].shape[0],), task, dtype=torch.int64)}

    for module in model.modules():
        if isinstance(module, PolyLayer):
            module.register_forward_pre_hook(hook, with_kwargs=True)


def _shadow_step(wrapped: Any) -> Step:
    """The second network's cache stands behind the base's, layer by layer."""
    from peft.tuners.shadow.layers import ShadowCache

    tuner = wrapped.base_model
    depth = int(tuner.model.config.num_hidden_layers)

    def step(ids: Any, mask: Any, positions: Any, past: Any) -> tuple[Any, Pairs]:
        both = None
        if past is not None:
            pairs = pairs_of(past.layers)
            both = ShadowCache(base=cache_of_pairs(pairs[:depth]), shadow=cache_of_pairs(pairs[depth:]))
        out = tuner.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=both, use_cache=True
        )
        tuner._seed_shadow_state = None  # PEFT leaves it until the next call; a trace may leave nothing behind
        after = out.past_key_values
        return out.logits, [*pairs_of(after.base.layers), *pairs_of(after.shadow.layers)]

    return step


BOFT = Tracing(constant=(("boft.layer", "BOFTLayer", "cayley_batch"),))
C3A = Tracing(replaced=(("c3a.layer", "", "BlockCircularConvolution", _Circular),))
FROD = Tracing(
    constant=(("frod.layer", "Linear", "_get_frod_tensors"),),
    replaced=(("frod.layer", "Linear", "_sparse_activation_mm", _dense_product),),
)
HRA = Tracing(
    constant=(("hra.layer", "HRALinear", "get_delta_weight"),),
    replaced=(("hra.layer", "HRALinear", "forward", _reflect),),
)
POLY = Tracing(replaced=(("poly.router", "PolyRouter", "forward", _route),), for_task=_poly_for_task)
PSOFT = Tracing(constant=(("psoft.layer", "OrthLayer", "get_matrix"),))
SHADOW = Tracing(step=_shadow_step)
SHIRA = Tracing(
    constant=(("shira.layer", "Linear", "get_delta_weight"),),
    replaced=(("shira.layer", "Linear", "forward", _changed_weight),),
)
