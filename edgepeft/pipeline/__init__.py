"""The stages, and the stages put together.

Five functions with typed results make a checked bundle::

    from edgepeft.pipeline import capture, read_adapter, add_slots, write_bundle, validate

    base = capture("org/model", task="text-classification")
    adapter = read_adapter("./reviews-lora", name="reviews", weights=base.weight)
    slotted = add_slots(base, [adapter])
    bundle = write_bundle("out", base, slotted, [adapter])
    assert validate(bundle).passed

:func:`export` does the first four in one call and compares each adapter with PEFT before anything is written.
Each stage's result has a type that is exported here too.
Names are imported when they are used: ``add`` needs no torch, and neither does a look at this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from ..adapters.describe import AdapterPlan as AdapterPlan
    from ..adapters.edits import Adapter as Adapter
    from ..adapters.read import read_adapter as read_adapter
    from ..base.base import Base as Base
    from ..base.capture import capture as capture
    from ..bench.compare import CheckResult as CheckResult
    from ..bench.compare import check as check
    from ..bench.measure import bench as bench
    from ..bench.result import BenchResult as BenchResult
    from ..bundle.heads import Head as Head
    from ..bundle.read import Bundle as Bundle
    from ..graph.edit_base import add_slots as add_slots
    from ..graph.edit_base import merge as merge
    from ..graph.editable import MergedBase as MergedBase
    from ..graph.editable import SlottedBase as SlottedBase
    from ..report.accuracy import Accuracy as Accuracy
    from ..report.gate import Gate as Gate
    from ..report.gate import Report as Report
    from ..train.adapter import train_adapter as train_adapter
    from ..train.adapter_result import TrainedAdapter as TrainedAdapter
    from ..train.language import train_language_adapter as train_language_adapter
    from ..train.language_result import TrainedLanguageAdapter as TrainedLanguageAdapter
    from ..validate.result import AdapterParity as AdapterParity
    from ..validate.result import Validation as Validation
    from ..validate.run import validate as validate
    from ._add import Added as Added
    from ._add import add as add
    from ._auto_mode import ModeChoice as ModeChoice
    from ._auto_mode import export_auto as export_auto
    from ._blend import blend as blend
    from ._cache import QuantizedCache as QuantizedCache
    from ._cache import quantize_cache as quantize_cache
    from ._describe import describe as describe
    from ._diff import BundleDiff as BundleDiff
    from ._diff import Difference as Difference
    from ._diff import diff as diff
    from ._export import export as export
    from ._exported import Exported as Exported
    from ._for_target import Fitted as Fitted
    from ._for_target import export_for as export_for
    from ._for_target import fit as fit
    from ._mixed_bits import Front as Front
    from ._mixed_variant import Goal as Goal
    from ._plan import ExportPlan as ExportPlan
    from ._plan import plan_export as plan_export
    from ._plan_quantize import QuantizePlan as QuantizePlan
    from ._plan_quantize import plan_quantize as plan_quantize
    from ._quality import Quality as Quality
    from ._quantize import QuantizedBundle as QuantizedBundle
    from ._quantize import quantize as quantize
    from ._refit import Refitted as Refitted
    from ._refit import refit as refit
    from ._relabel import relabel as relabel
    from ._remove import Removed as Removed
    from ._remove import remove as remove
    from ._rename import rename as rename
    from ._static import write_static as write_static
    from ._stored_adapters import StoredAdapter as StoredAdapter
    from ._stored_adapters import store_adapters as store_adapters
    from ._straight import export_variants as export_variants
    from ._straight import export_whole as export_whole
    from ._web_graph import write_input_style as write_input_style
    from ._write import write_bundle as write_bundle

#: Where each name lives: the stages, in the order of the pipeline, and then what they return.
_HOME = {
    "train_adapter": "..train.adapter",
    "train_language_adapter": "..train.language",
    "capture": "..base.capture",
    "read_adapter": "..adapters.read",
    "add_slots": "..graph.edit_base",
    "merge": "..graph.edit_base",
    "write_bundle": "._write",
    "validate": "..validate.run",
    "bench": "..bench.measure",
    "check": "..bench.compare",
    "describe": "._describe",
    "export": "._export",
    "plan_export": "._plan",
    "plan_quantize": "._plan_quantize",
    "add": "._add",
    "remove": "._remove",
    "rename": "._rename",
    "relabel": "._relabel",
    "blend": "._blend",
    "store_adapters": "._stored_adapters",
    "diff": "._diff",
    "quantize": "._quantize",
    "refit": "._refit",
    "quantize_cache": "._cache",
    "write_input_style": "._web_graph",
    "fit": "._for_target",
    "export_for": "._for_target",
    "write_static": "._static",
    "export_variants": "._straight",
    "export_auto": "._auto_mode",
    "export_whole": "._straight",
    # what the stages return, and what is in it
    "TrainedAdapter": "..train.adapter_result",
    "TrainedLanguageAdapter": "..train.language_result",
    "Base": "..base.base",
    "Adapter": "..adapters.edits",
    "SlottedBase": "..graph.editable",
    "MergedBase": "..graph.editable",
    "Bundle": "..bundle.read",
    "Head": "..bundle.heads",
    "Validation": "..validate.result",
    "AdapterParity": "..validate.result",
    "Accuracy": "..report.accuracy",
    "Gate": "..report.gate",
    "Report": "..report.gate",
    "BenchResult": "..bench.result",
    "CheckResult": "..bench.compare",
    "AdapterPlan": "..adapters.describe",
    "Exported": "._exported",
    "ExportPlan": "._plan",
    "QuantizePlan": "._plan_quantize",
    "ModeChoice": "._auto_mode",
    "Added": "._add",
    "Removed": "._remove",
    "StoredAdapter": "._stored_adapters",
    "BundleDiff": "._diff",
    "Difference": "._diff",
    "QuantizedBundle": "._quantize",
    "Refitted": "._refit",
    "QuantizedCache": "._cache",
    "Front": "._mixed_bits",
    "Goal": "._mixed_variant",
    "Quality": "._quality",
    "Fitted": "._for_target",
}

__all__ = [  # noqa: RUF022 - in the order of the pipeline
    "train_adapter",
    "train_language_adapter",
    "capture",
    "read_adapter",
    "add_slots",
    "merge",
    "write_bundle",
    "validate",
    "bench",
    "check",
    "describe",
    "export",
    "plan_export",
    "plan_quantize",
    "add",
    "remove",
    "rename",
    "relabel",
    "blend",
    "store_adapters",
    "diff",
    "quantize",
    "refit",
    "quantize_cache",
    "write_input_style",
    "fit",
    "export_for",
    "write_static",
    "export_variants",
    "export_auto",
    "export_whole",
    "TrainedAdapter",
    "TrainedLanguageAdapter",
    "Base",
    "Adapter",
    "SlottedBase",
    "MergedBase",
    "Bundle",
    "Head",
    "Validation",
    "AdapterParity",
    "Accuracy",
    "Gate",
    "Report",
    "BenchResult",
    "CheckResult",
    "AdapterPlan",
    "Exported",
    "ExportPlan",
    "QuantizePlan",
    "ModeChoice",
    "Added",
    "Removed",
    "StoredAdapter",
    "BundleDiff",
    "Difference",
    "QuantizedBundle",
    "Refitted",
    "QuantizedCache",
    "Quality",
    "Fitted",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
