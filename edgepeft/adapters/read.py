"""``read_adapter``: whatever PEFT saved, in canonical form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..bundle.names import check_name
from ..errors import AdapterError, AdapterMismatchError, InputError, NeedsPeftError, UnsupportedAdapterError
from .base_weights import BaseWeights, HeldWeights
from .checkpoint import Checkpoint, Source, read_checkpoint
from .edits import Adapter
from .methods.registry import METHODS, Method
from .methods.virtual import lower_states, lower_tokens
from .renames import fitted

Ship = Literal["swap", "merge"]
#: Gives the base as a PyTorch model; called only where a method has no closed form.
BaseModule = Callable[[], Any]


def method_of(checkpoint: Checkpoint) -> Method:
    """The registry's entry for a checkpoint; raises :class:`UnsupportedAdapterError` for a method that is not in it."""
    method = METHODS.get(checkpoint.peft_type)
    if method is None:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: method {checkpoint.peft_type or '(none named)'} is not lowered by this version, which knows "
            f"the {len(METHODS)} methods of peft 0.21. Where PEFT can merge it, merge it there and export the result as a base."
        )
    return method


def _refusal(checkpoint: Checkpoint, method: Method) -> UnsupportedAdapterError:
    bake = method.mode == "bake"
    ways = "neither swapped nor merged" if bake else "neither swapped, merged nor baked"
    out = ". Export it with --mode bake: one graph for this adapter alone" if bake else ""
    return UnsupportedAdapterError(
        f"{checkpoint.source}: {method.peft_type} ({method.title}) can be {ways}: {method.reason}{out}"
    )


def opaque_adapter(source: Source, *, name: str) -> Adapter:
    """What a checkpoint says of itself, without any edit: for baking, which lowers nothing.

    Raises :class:`UnsupportedAdapterError` for a method that cannot be baked either.
    """
    checkpoint = read_checkpoint(source)
    method = method_of(checkpoint)
    task_ids(checkpoint, method.tasks)
    if method.mode == "refuse" and not method.before_sequence(checkpoint):
        raise _refusal(checkpoint, method)
    record = checkpoint.record
    return Adapter(
        name=name,
        method=method.title,
        sites={},
        labels=checkpoint.labels,
        base_identity=record.get("base_identity"),
        base_name=checkpoint.config.get("base_model_name_or_path"),
        source=checkpoint.source,
        checkpoint_sha256=checkpoint.sha256,
        text=checkpoint.text,
    )


def layers_of(checkpoint: Checkpoint) -> tuple[tuple[int, int], ...]:
    """The ranges of layers that the base is rebuilt from (LoRA's ``layer_replication``); empty where it stays as it is."""
    try:
        return tuple((int(start), int(end)) for start, end in checkpoint.config.get("layer_replication") or ())
    except (TypeError, ValueError) as error:
        raise AdapterError(
            f"{checkpoint.source}: layer_replication must be a list of [start, end], found "
            f"{checkpoint.config['layer_replication']!r}"
        ) from error


def _check_layers(checkpoint: Checkpoint, layers: Sequence[Sequence[int]]) -> None:
    wanted, have = [list(pair) for pair in layers_of(checkpoint)], [list(pair) for pair in layers]
    if wanted == have:
        return
    if not have:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: LoRA with layer_replication={wanted} belongs to a base whose layers are repeated so, and this "
            "base has each once. Export the base together with this adapter into a bundle of its own: edgepeft export rebuilds it "
            "(in Python, capture(…, layers=…))."
        )
    raise AdapterMismatchError(
        f"{checkpoint.source}: this base was rebuilt with layer_replication={have}, the adapter has "
        f"{wanted or 'none'}: it belongs to another base"
    )


@contextmanager
def sound(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise :class:`AdapterError` where computing with a checkpoint fails.

    A checkpoint comes from anywhere. Each method checks what it can name; that its tensors have the shapes and its
    options the values that a formula takes shows only when it is computed.
    """
    try:
        yield
    except MemoryError as error:
        raise AdapterError(f"{checkpoint.source}: {checkpoint.peft_type} asks for more memory than there is") from error
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AdapterError(
            f"{checkpoint.source}: its tensors and its adapter_config.json do not make up one {checkpoint.peft_type} adapter: "
            f"{first}. Save it again with PEFT, or take it from its source again."
        ) from error


def _closed_form(
    method: Method, name: str, checkpoint: Checkpoint, weights: BaseWeights, max_rank: int | None, mode: Ship
) -> Adapter:
    with sound(checkpoint):
        if method.lower is not None:
            return method.lower(name, checkpoint, weights)
        if method.lower_dense is not None:
            return method.lower_dense(name, checkpoint, weights, max_rank=max_rank, mode=mode)
    raise NeedsPeftError(
        f"{checkpoint.source}: {method.peft_type} has no closed form ({method.reason}). It is lowered by running it in PEFT over "
        "its base: export it together with the base."
    )


def read_adapter(
    source: Source,
    *,
    name: str,
    weights: BaseWeights,
    module: BaseModule | None = None,
    mode: Ship = "swap",
    max_rank: int | None = None,
    layers: Sequence[Sequence[int]] = (),
) -> Adapter:
    """Read a PEFT checkpoint and lower it to edits of the base. Every tensor of the checkpoint is used, or it is an error.

    Args:
        source: A folder or a Hugging Face id, with ``#task=N`` behind it for one task of a checkpoint that holds several; or
            a checkpoint that was read already.
        name: What the adapter is called in the bundle.
        weights: Gives the base's parameters by name (``base.weight``), for methods whose lowering depends on them (DoRA,
            PiSSA, IA3).
        module: Gives the base as a PyTorch model. It is called only where a method or an option has no closed form.
        mode: ``"merge"`` lets a method without a closed form bring whole weights; ``"swap"`` keeps what fits slots.
        max_rank: The largest rank that an SVD may choose. By default the smallest whose relative residual is at
            most 1e-4. Where its factors hold more numbers than the weights, the adapter can only be merged.
        layers: Ranges ``[start, end)`` of layers that the base was rebuilt from. They must be the checkpoint's
            ``layer_replication``.

    Returns:
        The edits by site. A low-rank edit is ``A [in, rank]`` and ``B [rank, out]``, float32, with the scale in ``B``.

    Raises:
        UnsupportedAdapterError: The method, or an option of it, has no lowering here.
        NeedsPeftError: It has one only through PEFT, and ``module`` was not given.
        AdapterMismatchError: The adapter was made for another base.
        InputError: ``name`` cannot be used.
        AdapterError: The checkpoint cannot be read, or a tensor of it was not used.

    Example:
        >>> adapter = read_adapter("./reviews-lora", name="reviews", weights=base.weight)
        >>> adapter.scalable
        True
    """
    try:
        check_name(name)
    except ValueError as error:
        raise InputError(f"adapter name: {error}") from error
    if max_rank is not None and max_rank < 1:
        raise InputError(f"max_rank must be at least 1, found {max_rank}")
    checkpoint = read_checkpoint(source)
    _check_layers(checkpoint, layers)
    checkpoint = fitted(checkpoint, lambda module: weights.shape(f"{module}.weight") is not None)
    lowered = _lowered(checkpoint, name, weights, module, mode, max_rank, layers)
    return replace(lowered, text=checkpoint.text)


def _lowered(
    checkpoint: Checkpoint,
    name: str,
    weights: BaseWeights,
    module: BaseModule | None,
    mode: Ship,
    max_rank: int | None,
    layers: Sequence[Sequence[int]],
) -> Adapter:
    """The checkpoint's edits: in closed form where its method has one, else by running it in PEFT."""
    method = method_of(checkpoint)
    task = task_ids(checkpoint, method.tasks)
    if method.before_sequence(checkpoint):
        if mode == "merge":
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: {method.peft_type} ({method.title}) puts states before the sequence, which no change of "
                "weights expresses: it cannot be merged. Export it with --mode swap."
            )
        if method.virtual == "states":
            with sound(checkpoint):
                return lower_states(name, method.title, checkpoint)
        return lower_tokens(name, method.title, checkpoint, module, task)
    if method.mode in {"bake", "refuse"}:
        raise _refusal(checkpoint, method)
    try:
        return _closed_form(method, name, checkpoint, weights, max_rank, mode)
    except NeedsPeftError as needed:
        if module is None:
            raise
        if layers:
            raise UnsupportedAdapterError(
                f"{needed} Not over repeated layers (layer_replication), which PEFT would repeat once more."
            ) from needed
        try:
            base = module()
        except InputError as error:
            raise NeedsPeftError(f"{needed} Here the base cannot be loaded: {error}") from error
    if not weights.complete:
        weights = _all_weights(base)
        try:
            return _closed_form(method, name, checkpoint, weights, max_rank, mode)
        except NeedsPeftError:
            pass  # it is not for want of weights
    from .through_peft.lower import lower_with_peft

    return lower_with_peft(name, checkpoint, base, method=method.title, weights=weights, mode=mode, max_rank=max_rank)


def _all_weights(base: Any) -> BaseWeights:
    from .layout import as_linear

    held = {name: np.asarray(p.detach().float().cpu().numpy()) for name, p in base.named_parameters()}
    return HeldWeights(as_linear(base, held))


def task_ids(checkpoint: Checkpoint, count_option: str) -> int | None:
    """The task that ``checkpoint`` was asked for, among the number in its config's ``count_option`` (empty: no tasks).

    Raises :class:`InputError` where none was named, one that it lacks, or one of a method without tasks.
    """
    task = checkpoint.task
    if not count_option:
        if task is not None:
            raise InputError(
                f"{checkpoint.source}: {checkpoint.peft_type} holds one adapter and no tasks; leave out #task={task}"
            )
        return None
    count = checkpoint.config.get(count_option)
    if not isinstance(count, int) or count < 1:
        raise InputError(
            f"{checkpoint.source}: the config of {checkpoint.peft_type} must give {count_option}, found {count!r}"
        )
    if task is None or task >= count:
        said = "" if task is None else f"; it has no task {task}"
        raise InputError(
            f"{checkpoint.source}: {checkpoint.peft_type} holds {count} tasks, and each is an adapter of its own{said}. Name one: "
            f"{checkpoint.path}#task=N, N from 0 to {count - 1}; for several give an adapter name to each"
        )
    return task
