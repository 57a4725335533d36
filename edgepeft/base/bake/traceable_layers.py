"""PEFT's layers as they can be traced: in operators that ONNX has.

What is done for which method is said in its registry entry (:class:`~edgepeft.adapters.methods.tracing.Tracing`). It holds
while tracing only; that the graph computes what PEFT computes is measured afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ...adapters.methods.tracing import Tracing


def _dense(result: Any) -> Any:
    """Tensors without gradient or sparsity, whatever holds them."""
    if isinstance(result, tuple):
        return tuple(_dense(each) for each in result)
    return (result.to_dense() if result.is_sparse else result).detach()


def _once(method: Callable[..., Any], kept: dict[Any, Any]) -> Callable[..., Any]:
    def constant(self: Any, *args: Any, **options: Any) -> Any:
        key = (id(self), method.__qualname__)
        if key not in kept:
            kept[key] = _dense(method(self, *args, **options))
        return kept[key]

    return constant


@contextmanager
def traceable(tracing: Tracing, run: Callable[[], Any]) -> Iterator[None]:
    """One method's layers in operators that ONNX has, until the block ends; ``run`` runs the model once on real numbers."""
    import torch

    kept: dict[Any, Any] = {}
    patches: list[tuple[str, str, str, Any]] = [(path, owner, name, None) for path, owner, name in tracing.constant]
    before: list[tuple[Any, str, Any]] = []
    try:
        for path, owner, name, new in (*patches, *tracing.replaced):
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
