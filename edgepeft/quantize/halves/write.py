"""Files of a variant in float16, and of what it is judged by."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...bundle import SlotTable
from ...errors import BundleError
from .plan import HalfPlan
from .rewrite import drop_unread, emulate_halves, to_halves


def write_halves(source: Path, target: Path, slots: SlotTable, *, floats: Collection[str], plan: HalfPlan) -> None:
    """Write a prepared graph in float16 as planned, its weights beside it. Slots stay in float32; a Cast reads them.

    Args:
        source: What :func:`~.prepare.prepare` wrote.
        target: The file to write; its weights go to ``<target>_data``.
        slots: The bundle's slots.
        floats: The float32 values of the graph.
        plan: What becomes float16.
    """
    model = ir.load(source)
    to_halves(model, floats, plan)
    drop_unread(model)
    ir.save(model, target, external_data=f"{target.name}_data")


def write_emulated(source: Path, target: Path, floats: Collection[str], plan: HalfPlan) -> None:
    """Write a prepared graph in float32 that rounds what is float16 in the plan; see :func:`~.rewrite.emulate_halves`."""
    model = ir.load(source)
    emulate_halves(model, floats, plan)
    drop_unread(model)
    ir.save(model, target, external_data=f"{target.name}_data")


def round_half(weight: np.ndarray) -> np.ndarray:
    """``weight`` with the numbers that float16 leaves, float32."""
    return weight.astype(np.float16).astype(np.float32)


def plain_session(model: Path) -> Any:
    """A session that computes a graph as it stands: nothing is fused, and no Cast is taken out.

    Raises:
        BundleError: ONNX Runtime cannot open it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception types are not public
        raise BundleError(f"ONNX Runtime cannot open {model}: {error}") from error
