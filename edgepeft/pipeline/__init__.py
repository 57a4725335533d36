"""The stages, and the stages put together.

Five functions with typed results make a checked bundle::

    from edgepeft.pipeline import capture, read_adapter, add_slots, write_bundle, validate

    base = capture("org/model", task="text-classification")
    adapter = read_adapter("./reviews-lora", name="reviews", weights=base.weight)
    slotted = add_slots(base, [adapter])
    bundle = write_bundle("out", base, slotted, [adapter])
    assert validate(bundle).passed

:func:`export` does the first four in one call and compares each adapter with PEFT before anything is written.
Names are imported when they are used: ``add`` needs no torch, and neither does a look at this module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..adapters.read import read_adapter as read_adapter
    from ..base.capture import capture as capture
    from ..graph.edit_base import add_slots as add_slots
    from ..train.adapter import train_adapter as train_adapter
    from ..validate.run import validate as validate
    from ._add import add as add
    from ._blend import blend as blend
    from ._describe import describe as describe
    from ._export import export as export
    from ._for_target import export_for as export_for
    from ._for_target import fit as fit
    from ._quantize import quantize as quantize
    from ._remove import remove as remove
    from ._static import write_static as write_static
    from ._web_graph import write_input_style as write_input_style
    from ._write import write_bundle as write_bundle

_HOME = {
    "train_adapter": "..train.adapter",
    "capture": "..base.capture",
    "read_adapter": "..adapters.read",
    "add_slots": "..graph.edit_base",
    "write_bundle": "._write",
    "validate": "..validate.run",
    "describe": "._describe",
    "export": "._export",
    "add": "._add",
    "remove": "._remove",
    "blend": "._blend",
    "quantize": "._quantize",
    "write_input_style": "._web_graph",
    "fit": "._for_target",
    "export_for": "._for_target",
    "write_static": "._static",
}

__all__ = [  # noqa: RUF022 - in the order of the pipeline
    "train_adapter",
    "capture",
    "read_adapter",
    "add_slots",
    "write_bundle",
    "validate",
    "describe",
    "export",
    "add",
    "remove",
    "blend",
    "quantize",
    "write_input_style",
    "fit",
    "export_for",
    "write_static",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
