"""A checkpoint in PEFT's own model of it: loaded, and every tensor of it there."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np

from ...errors import AdapterError, MissingExtraError
from ..checkpoint import Checkpoint
from ..patterns import check_patterns
from ..renames import fitted

#: What PEFT's model puts before the names of its base.
PREFIX = "base_model.model."


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


def peft_over(base: Any, checkpoint: Checkpoint) -> Any:
    """PEFT's model of ``checkpoint`` over ``base``, in eval mode: what ``PeftModel.from_pretrained`` makes of its folder.

    It is made of what was read and hashed, so no file is opened again. PEFT's layers are put into ``base`` itself. Raises
    whatever PEFT's tuners raise over a base or a config that does not suit them; :func:`wrap` gives that a type.
    """
    import torch
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    options = {name: value for name, value in checkpoint.config.items() if name != "runtime_config"}
    config = PeftConfig.from_peft_type(**PeftConfig.check_kwargs(**options))
    config.inference_mode = True
    # PEFT's own class for encoder-decoders gives every base token ids, which Whisper does not take.
    sound = getattr(base, "main_input_name", None) == "input_features"
    kind = PeftModel if sound else MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    model = kind(base, config)
    set_peft_model_state_dict(model, {name: torch.tensor(array) for name, array in checkpoint.stored.items()})
    if hasattr(model.base_model, "_cast_adapter_dtype"):
        model.base_model._cast_adapter_dtype(adapter_name="default", autocast_adapter_dtype=True)
    return model.eval()


def wrap(base: Any, checkpoint: Checkpoint) -> Any:
    """PEFT's model over ``base`` with the checkpoint's adapter, in eval mode: :func:`peft_over` for a checkpoint from anywhere.

    The config's regular expressions are tried on the names of the base's modules first: PEFT would run one without an end.

    Raises:
        AdapterError: PEFT cannot load it over this base.
        MissingExtraError: The method needs another package.
    """
    modules = {name for name, _ in base.named_modules()}
    experts = {
        f"{name.rpartition('.')[0]}.0.{name.rpartition('.')[2]}" for name, p in base.named_parameters() if p.ndim == 3
    }
    checkpoint = fitted(checkpoint, {*modules, *experts}.__contains__)
    check_patterns(checkpoint.config, modules, checkpoint.source)
    try:
        return peft_over(base, checkpoint)
    except ImportError as error:
        raise MissingExtraError(f"PEFT needs another package for {checkpoint.peft_type}: {error}") from error
    # PEFT has no exceptions of its own: these are what its tuners raise over a base or config that does not suit them.
    except (
        RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, MemoryError,
    ) as error:  # fmt: skip
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AdapterError(f"PEFT cannot load {checkpoint.source} over this base: {first}") from error


def load_in_peft(base: Any, checkpoint: Checkpoint) -> Any:
    """PEFT's model over ``base``, in float64 and eval mode; every tensor of the checkpoint must have arrived."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what is checked below, and of transformers' deprecations
        model = wrap(base, checkpoint)
        check_arrived(checkpoint, model)
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

    loaded = {name.removeprefix(PREFIX): tensor for name, tensor in get_peft_model_state_dict(model).items()}
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


def ask_for_task(model: Any, task: int | None) -> None:
    """Let PEFT's ``model`` run every row for ``task``, which it takes as ``task_ids`` with every call."""
    if task is None:
        return
    import torch

    def hook(module: Any, args: Any, options: dict[str, Any]) -> Any:
        rows = options["input_ids"].shape[0]
        return args, {**options, "task_ids": torch.full((rows,), task, dtype=torch.int64)}

    model.register_forward_pre_hook(hook, with_kwargs=True)
