"""edgepeft: deploy PEFT-adapted transformer models on edge devices through ONNX Runtime.

Two modules are the way in:

* :mod:`edgepeft.pipeline` makes bundles: train, capture, read, slot, write, validate, export, add, quantize.
* :mod:`edgepeft.runtime` opens one on the device and swaps adapters; it needs neither torch nor transformers.

:mod:`edgepeft.errors` holds every exception that is raised on purpose. Importing ``edgepeft`` imports nothing heavy.

Importing ``edgepeft`` switches ONNX Runtime's telemetry off for the process, unless ``ORT_DISABLE_TELEMETRY`` is set
already (docs/privacy.md).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime reads it once, while it is imported: its function `disable_telemetry_events` comes too late to stop the look-up
# of a telemetry host and the database below the user's cache. Every module that imports ONNX Runtime lies below this one.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = ["errors", "pipeline", "runtime"]

if TYPE_CHECKING:
    from . import errors, pipeline, runtime


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgepeft' has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)
