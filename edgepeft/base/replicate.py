"""A deeper base whose layers repeat, as LoRA's ``layer_replication`` asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..errors import InputError, MissingExtraError

#: Ranges ``[start, end)`` of the base's layers that stand behind each other in the deeper one.
LayerMap = Sequence[Sequence[int]]


def replicate_layers(model: Any, layers: LayerMap, source: str) -> None:
    """Rebuild ``model`` in place with its layers repeated by ``layers``; every copy gets parameters of its own.

    PEFT lets the copies share their parameters. Here an adapter differs from copy to copy, and so must what it edits.
    Settings by layer (``layer_types``) are repeated alike. Raises :class:`InputError` where the model has no such layers, or
    cannot run with more of them.
    """
    import torch

    try:
        from peft.tuners.tuners_utils import replicate_layers as replicate
    except ImportError as error:
        raise MissingExtraError(f"layer_replication needs: pip install 'edgepeft[export]' ({error})") from error
    config = model.config
    depth = int(getattr(config, "num_hidden_layers", 0))
    order = [layer for start, end in layers for layer in range(start, end)]
    if not order or min(order) < 0 or max(order) >= depth:
        raise InputError(
            f"layer_replication {[list(pair) for pair in layers]} names layers that {source} does not have: it has {depth}. The "
            "adapter was trained over another base."
        )
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    tied = {each for each, count in uses.items() if count > 1}
    try:
        replicate(model, [tuple(pair) for pair in layers])
    except (ValueError, AttributeError) as error:
        raise InputError(f"{source}: PEFT cannot repeat layers of {type(model).__name__}: {error}") from error
    by_layer = {n: v for n, v in vars(config).items() if isinstance(v, (list, tuple)) and len(v) == depth}
    if by_layer and len(order) > depth:
        _check_runs(model, source, ", ".join(by_layer))
        for name, value in by_layer.items():
            setattr(config, name, [value[layer] for layer in order])
    seen: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in seen and id(parameter) not in tied:
                    setattr(module, name, torch.nn.Parameter(parameter.clone(), requires_grad=parameter.requires_grad))
                seen.add(id(parameter))


def _check_runs(model: Any, source: str, settings: str) -> None:
    """Raise :class:`InputError` where a model that PEFT made deeper looks up settings its config does not have."""
    import torch

    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    except IndexError as error:
        raise InputError(
            f"{source}: PEFT itself cannot run {type(model).__name__} with more layers than its config has settings for "
            f"({settings}), so there is nothing that layer_replication could be compared with. Save the deeper model as a base "
            "of its own and train a plain adapter over that."
        ) from error
