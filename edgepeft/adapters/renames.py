"""Module paths that changed: between a multimodal model and its language part, and from transformers 4 to 5.

PEFT passes over tensors whose names it does not know. A checkpoint whose modules the base has under another path is read by the
base's names, if one rule fits all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from ..errors import UnsupportedAdapterError
from .checkpoint import Checkpoint
from .methods.experts_of_modules import with_fused_experts

#: What PEFT's model puts before the names of its base.
_PREFIX = "base_model.model."

#: Each rule: what module paths begin with or hold, and what stands there in the base. Tried in order.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^model\.language_model\.model\.", "model."),
    (r"^model\.language_model\.lm_head", "lm_head"),
    (r"^model\.language_model\.", "model."),
    (r"^language_model\.model\.", "model."),
    (r"^language_model\.lm_head", "lm_head"),
    (r"^model\.text_model\.", "model."),
    (r"^thinker\.model\.", "model."),
    (r"\.block_sparse_moe\.", ".mlp."),
)

#: Modules of multimodal models that see or hear.
_SENSES = re.compile(
    r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|mm_projector|embed_vision|audio_tower|embed_audio)(\.|$)"
)

Known = Callable[[str], bool]


def _module_of(tensor: str, known: Known) -> str | None:
    """The base's module that a tensor of a checkpoint belongs to: its name less the parts that PEFT puts behind the path."""
    parts = tensor.split(".")
    paths = (".".join(parts[:-end]) for end in range(1, min(5, len(parts))))
    return next((path for path in paths if known(path)), None)


def fitted(checkpoint: Checkpoint, known: Known) -> Checkpoint:
    """The checkpoint by the names that a base gives its modules.

    Args:
        checkpoint: What was read.
        known: Whether the base has a module of that path.

    Returns:
        The checkpoint as it is where the base knows a module of it, or no rule fits; else renamed, its ``target_modules``
        with it.

    Raises:
        UnsupportedAdapterError: Beside modules of the language part it adapts some that see or hear, which the base lacks.
    """
    checkpoint = with_fused_experts(checkpoint, known)
    names = sorted(checkpoint.tensors)
    new = {name: _renamed(name, known) for name in names}
    served = [name for name in names if _module_of(new[name], known) is not None]
    senses = [name for name in names if _SENSES.search(name) and name not in served]
    if served and senses:
        raise UnsupportedAdapterError(
            f"{checkpoint.source} adapts modules that see or hear ({senses[0]} and {len(senses) - 1} more tensors), and this base "
            "is the language part alone, which lacks them. Train an adapter of the language part (target_modules of language_model)"
        )
    if all(new[name] == name for name in names):
        return checkpoint
    stored = {
        _PREFIX + new.get(name.removeprefix(_PREFIX), name.removeprefix(_PREFIX)): t
        for name, t in checkpoint.stored.items()
    }
    tensors = {new[name]: tensor for name, tensor in checkpoint.tensors.items()}
    config = dict(checkpoint.config)
    if config.get("target_modules") not in (None, "all-linear"):
        # Patterns and ends of paths are of the old paths; the new ones are named whole.
        saved = tuple(config.get("modules_to_save") or ())
        modules = {_module_of(name, known) for name in tensors} - {None}
        config["target_modules"] = sorted(
            str(module) for module in modules if not str(module).endswith(saved or ("\0",))
        )
        config["exclude_modules"] = None
    return replace(checkpoint, tensors=tensors, stored=stored, config=config)


def _renamed(name: str, known: Known) -> str:
    """A tensor's name with the first rule applied that leads to a module of the base; as it is where none does."""
    if _module_of(name, known) is not None:
        return name
    for pattern, into in _RULES:
        new = re.sub(pattern, into, name)
        if new != name and _module_of(new, known) is not None:
            return new
    return name
