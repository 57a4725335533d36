"""PEFT's layers as they can be traced: in operators that ONNX has.

Some of them make a matrix of their parameters with what ONNX lacks (a solved system, a sparse tensor), or of loops that
tracing unrolls; others change their input so (an FFT). The former are computed once and stand in the graph as constants,
the latter in plain operators that give the same numbers. Both hold while tracing only, for the classes of peft 0.21; that
the graph computes what PEFT computes is measured afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

#: Methods whose results depend on a layer's parameters alone: module below ``peft.tuners``, class, method.
_CONSTANT = (
    ("boft.layer", "BOFTLayer", "cayley_batch"),
    ("frod.layer", "Linear", "_get_frod_tensors"),
    ("hra.layer", "HRALinear", "get_delta_weight"),
    ("psoft.layer", "OrthLayer", "get_matrix"),
    ("shira.layer", "Linear", "get_delta_weight"),
)


def _dense(found: Any) -> Any:
    """Tensors without gradient or sparsity, whatever holds them."""
    if isinstance(found, tuple):
        return tuple(_dense(each) for each in found)
    return (found.to_dense() if found.is_sparse else found).detach()


def _once(method: Callable[..., Any], kept: dict[Any, Any]) -> Callable[..., Any]:
    def constant(self: Any, *args: Any, **options: Any) -> Any:
        key = (id(self), method.__qualname__)
        if key not in kept:
            kept[key] = _dense(method(self, *args, **options))
        return kept[key]

    return constant


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


#: Module below ``peft.tuners``, class (or none), what is replaced, by what.
_REPLACED: tuple[tuple[str, str, str, Any], ...] = (
    ("c3a.layer", "", "BlockCircularConvolution", _Circular),
    ("frod.layer", "Linear", "_sparse_activation_mm", _dense_product),
    ("hra.layer", "HRALinear", "forward", _reflect),
    ("poly.router", "PolyRouter", "forward", _route),
    ("shira.layer", "Linear", "forward", _changed_weight),
)


@contextmanager
def traceable(run: Callable[[], Any]) -> Iterator[None]:
    """PEFT's layers in operators that ONNX has, until the block ends; ``run`` runs the model once on real numbers."""
    import torch

    kept: dict[Any, Any] = {}
    patches: list[tuple[str, str, str, Any]] = [(path, owner, name, None) for path, owner, name in _CONSTANT]
    before: list[tuple[Any, str, Any]] = []
    try:
        for path, owner, name, new in (*patches, *_REPLACED):
            module = import_module(f"peft.tuners.{path}")
            place = getattr(module, owner) if owner else module
            original = vars(place)[name]
            before.append((place, name, original))
            setattr(place, name, _once(original, kept) if new is None else new)
        with torch.no_grad():
            run()
        yield
    finally:
        for place, name, original in before:
            setattr(place, name, original)
