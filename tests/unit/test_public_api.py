"""The public face, pinned, and what looking at it may import."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from typing import Any

import pytest

import edgepeft
import edgepeft.errors
import edgepeft.pipeline
import edgepeft.runtime

HEAVY = {"torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "optimum", "safetensors", "datasets",
         "accelerate", "tokenizers", "huggingface_hub", "scipy", "pandas", "numpy", "pydantic"}  # fmt: skip
#: A call of the command line in a process that goes on.
CALL = "import sys; sys.argv[1:] = '{}'.split()\nfrom edgepeft.cli import main\ntry: main()\nexcept SystemExit: pass"


STAGES = [
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
]
RESULTS = [
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


def test_pinned() -> None:
    """A name that comes or goes here is a change for users: say so in the release notes."""
    assert edgepeft.__all__ == ["errors", "pipeline", "runtime"]
    assert edgepeft.pipeline.__all__ == [*STAGES, *RESULTS]
    assert edgepeft.runtime.__all__ == [
        "Bundle",
        "Calls",
        "ChatTemplate",
        "Confidence",
        "Conversation",
        "GenerateOptions",
        "Generation",
        "Generator",
        "KernelWarning",
        "Kernels",
        "Manifest",
        "MultiLabelPrediction",
        "Placement",
        "Prediction",
        "Refreshed",
        "Runtime",
        "Score",
        "Segment",
        "Steps",
        "TextEncoder",
        "TextStream",
        "Transcription",
        "View",
        "open",
        "read_sound",
    ]


def own_classes(annotation: Any) -> set[type]:
    """The classes of edgepeft in a resolved annotation: ``Added | Path`` gives ``{Added}``."""
    inner = typing.get_args(annotation)
    if inner:
        return set().union(*(own_classes(each) for each in inner))
    ours = isinstance(annotation, type) and annotation.__module__.startswith("edgepeft.")
    return {annotation} if ours else set()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_returns_what_is_exported(name: str) -> None:
    returned = typing.get_type_hints(getattr(edgepeft.pipeline, name))["return"]
    exported = {getattr(edgepeft.pipeline, result) for result in RESULTS}
    assert own_classes(returned) <= exported
    assert own_classes(returned) or name == "write_static"  # which gives the paths of files


def test_results_are_types_that_stages_give() -> None:
    """Every result type is what a stage returns, or a field or a report of that."""
    returned = [typing.get_type_hints(getattr(edgepeft.pipeline, name))["return"] for name in STAGES]
    direct = set().union(*(own_classes(each) for each in returned))
    fields = set().union(*(own_classes(hint) for each in direct for hint in typing.get_type_hints(each).values()))
    others = {getattr(edgepeft.pipeline, name) for name in RESULTS} - direct - fields
    # People and CI read a Report of a Validation, BenchResult or CheckResult; a Head is given to export, add and relabel.
    assert others == {edgepeft.pipeline.Report, edgepeft.pipeline.Head}


@pytest.mark.parametrize("kind", ["Runtime", "View", "Conversation", "TextStream"])
def test_a_runtime_returns_what_is_exported(kind: str) -> None:
    """Public methods and properties; attributes that a constructor sets (``engine``) are for the package's own use."""
    exported = {getattr(edgepeft.runtime, name) for name in edgepeft.runtime.__all__}
    calls = {
        name: call for name, call in inspect.getmembers(getattr(edgepeft.runtime, kind)) if not name.startswith("_")
    }
    checked = 0
    for name, call in calls.items():
        function = call.fget if isinstance(call, property) else call
        if inspect.isfunction(function):
            checked += 1
            assert own_classes(typing.get_type_hints(function).get("return")) <= exported, f"{kind}.{name}"
    assert checked


@pytest.mark.parametrize("module", [edgepeft, edgepeft.pipeline, edgepeft.runtime])
def test_every_name_is_there(module: object) -> None:
    for name in module.__all__:  # type: ignore[attr-defined]
        assert getattr(module, name) is not None


@pytest.mark.parametrize("module", [edgepeft, edgepeft.pipeline])
def test_unknown_names(module: object) -> None:
    with pytest.raises(AttributeError, match="nope"):
        module.nope  # type: ignore[attr-defined]  # noqa: B018


def test_one_exception_tree_as_drawn() -> None:
    errors = {n: c for n, c in vars(edgepeft.errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    drawn = edgepeft.errors.__doc__ or ""
    assert all(issubclass(c, edgepeft.errors.EdgepeftError) for c in errors.values())
    assert [name for name in errors if name not in drawn] == []


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import edgepeft", set()),
        ("import edgepeft; edgepeft.pipeline", set()),
        ("import edgepeft.cli", set()),
        (CALL.format("--help"), set()),
        (CALL.format("train --help"), set()),
        ("import edgepeft.runtime, edgepeft.train", set()),
        ("import edgepeft; edgepeft.runtime.open", {"onnxruntime", "tokenizers", "numpy", "pydantic"}),
        ("import edgepeft.bundle, edgepeft.targets, edgepeft.report, edgepeft.data", {"numpy", "pydantic"}),
    ],
)
def test_imports_nothing_heavy(code: str, allowed: set[str]) -> None:
    """Counted in modules, not in seconds: these are what makes an import slow."""
    report = f"\nimport sys\nprint('LOADED', *sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert loaded <= allowed


def test_import_edgepeft_is_nearly_nothing() -> None:
    code = "import sys; before = set(sys.modules); import edgepeft; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith("edgepeft")] == ["edgepeft"]
