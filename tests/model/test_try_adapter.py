"""``add`` to a large language model: base and adapter are run part by part, with the findings of a run in one session."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from causal import build_causal_bundle, save_virtual
from conftest import save_lora

from edgepeft.bundle import known_files, read_bundle
from edgepeft.bundle.verified import VerifiedFile
from edgepeft.errors import AdapterError
from edgepeft.pipeline import _try_adapter, add, quantize, remove
from edgepeft.validate.segmented import SegmentedSession

LORA = {"task": "text-generation", "task_type": "CAUSAL_LM", "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's bundle that has q4 alone, as a large one has."""
    bundle = build_causal_bundle(tmp_path_factory.mktemp("large"))
    quantize(bundle, "q4", method="rtn")
    remove(bundle, variant="fp32")
    return bundle


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every bundle is a large one here; the parts that are opened, in their order."""
    monkeypatch.setattr(_try_adapter, "LARGE", 0)
    monkeypatch.setattr(_try_adapter, "PART", 20_000)
    parts: list[int] = []
    own = SegmentedSession._open

    def count(self: SegmentedSession, part: int, *more: Any) -> Any:
        parts.append(part)
        return own(self, part, *more)

    monkeypatch.setattr(SegmentedSession, "_open", count)
    return parts


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "own"))


def test_each_part_is_opened_once(own: Path, made: Path, opened: list[int]) -> None:
    before = {path.relative_to(own) for path in own.rglob("*")}
    assert add(own, "late", made.parent / "wide").changes_output is True
    assert len(opened) == len(set(opened)) > 3, "the base and the adapter pass each part while it is open"
    came = {path.relative_to(own).as_posix() for path in own.rglob("*")} - {path.as_posix() for path in before}
    assert came == {"adapters/late.onnx", "adapters/late.onnx_adapter"}


def test_an_adapter_that_changes_nothing(own: Path, made: Path, tmp_path: Path, opened: list[int]) -> None:
    """A LoRA whose second factors are zero, as training begins with."""
    source = save_lora(tmp_path / "zero", made.parent / "model", scale=0.0, **LORA)
    assert add(own, "zero", source).changes_output is False
    assert opened


def test_outputs_that_are_no_numbers(own: Path, made: Path, tmp_path: Path, opened: list[int]) -> None:
    """Every factor is finite and their product is not."""
    source = save_lora(tmp_path / "huge", made.parent / "model", scale=1e30, **LORA)
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    with pytest.raises(AdapterError, match="'huge' gives NaN or infinite outputs"):
        add(own, "huge", source)
    assert opened
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


def test_states_before_the_sequence(own: Path, made: Path, tmp_path: Path, opened: list[int]) -> None:
    source = save_virtual(tmp_path / "prefix", made.parent / "model", "prefix")
    assert add(own, "prefix", source).changes_output is True
    assert opened


def test_a_small_bundle_is_opened_as_a_whole(own: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentedSession, "_open", lambda *_: pytest.fail("a small graph was cut"))
    assert add(own, "late", made.parent / "wide").changes_output is True


def test_nothing_for_graphs_is_imported(own: Path, made: Path) -> None:
    """A device that adds an adapter has the base install alone, and importing onnx_ir takes most of a second."""
    script = (
        "import sys; from edgepeft.pipeline import _try_adapter, add; _try_adapter.LARGE = 0; _try_adapter.PART = 20000; "
        "assert add(sys.argv[1], 'late', sys.argv[2]).changes_output; "
        "sys.exit(' '.join({'onnx', 'onnx_ir', 'torch', 'transformers', 'peft', 'sympy'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, own, made.parent / "wide"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_known_of_the_base_is_not_hashed_again(
    own: Path, made: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy's weights are those of the bundle, which was hashed when it was opened."""
    monkeypatch.setattr(known_files, "TICK_NS", 0)  # nobody writes: what was hashed just now is known
    read_bundle(own).check()
    hashed: list[str] = []
    whole = VerifiedFile.sha256
    monkeypatch.setattr(VerifiedFile, "sha256", lambda self: hashed.append(self.name) or whole(self))
    add(own, "late", made.parent / "wide")
    assert opened
    assert "onnx/model_q4.onnx_data" not in hashed
