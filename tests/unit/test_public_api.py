"""The public face, pinned, and what looking at it may import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgepeft
import edgepeft.errors
import edgepeft.pipeline
import edgepeft.runtime

HEAVY = {"torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "optimum", "safetensors", "datasets",
         "accelerate", "tokenizers", "huggingface_hub", "scipy", "pandas"}  # fmt: skip


def test_pinned() -> None:
    """A name that comes or goes here is a change for users: say so in the release notes."""
    assert edgepeft.__all__ == ["errors", "pipeline", "runtime"]
    assert edgepeft.pipeline.__all__ == [
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
    assert edgepeft.runtime.__all__ == [
        "Conversation",
        "Generation",
        "Prediction",
        "Runtime",
        "TextStream",
        "View",
        "open",
    ]


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
        (
            "import sys; sys.argv[1:] = ['--help']\nfrom edgepeft.cli import main\ntry: main()\nexcept SystemExit: pass",
            set(),
        ),
        ("import edgepeft.runtime", {"onnxruntime", "tokenizers"}),
        ("import edgepeft.bundle, edgepeft.targets, edgepeft.report, edgepeft.data", set()),
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
