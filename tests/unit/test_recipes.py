"""The registry of recipes: each entry is whole, and what is said of recipes elsewhere is read from it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from edgepeft.errors import InputError
from edgepeft.quantize import RECIPES, Recipe, recipe
from edgepeft.quantize.merge_error import lost_by_rounding
from edgepeft.quantize.recipes import preferred, with_texts, without_texts


@pytest.mark.parametrize("name", RECIPES)
def test_each_entry_is_whole(name: str) -> None:
    found = recipe(name)
    assert found.variant == name
    assert found.summary
    assert found.purpose
    assert found.graph_file("onnx/model.onnx") == f"onnx/model_{name}.onnx"
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype("f4")
    rounded = found.rounded(weight)
    assert (rounded.shape, rounded.dtype) == (weight.shape, np.float32)
    # It rounds, and leaves the weight: 4 bits in blocks lose some 10 % of a normal weight, 8 bits 1 %.
    error = np.linalg.norm(rounded - weight) / np.linalg.norm(weight)
    assert 0 < error < 0.15
    np.testing.assert_array_equal(rounded, found.rounded(weight.copy()))


@pytest.mark.parametrize("name", RECIPES)
def test_its_function_takes_what_the_pipeline_gives(name: str) -> None:
    """The lazily imported functions exist: called without arguments they miss theirs, and nothing else."""
    with pytest.raises(TypeError, match=r"missing 4 required|missing 3 required"):
        RECIPES[name].apply()


def test_a_merge_error_is_told_of_every_recipe() -> None:
    before = np.random.default_rng(1).standard_normal((8, 64)).astype("f4")
    change = np.random.default_rng(2).standard_normal((8, 64)).astype("f4") * 0.05
    lost = lost_by_rounding([(before, before + change)])
    assert list(lost) == list(RECIPES)
    assert all(0 < value < 5 for value in lost.values())


def test_one_entry_adds_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Recipe("q2", "2 bits", "2 bits, for nobody", lambda *_: None, lambda w: np.round(w), browsers=True)
    monkeypatch.setitem(RECIPES, "q2", new)
    before = np.zeros((2, 4), np.float32)
    assert lost_by_rounding([(before, before + np.float32(0.25))])["q2"] == 1.0  # all of it is rounded away
    assert preferred("browsers") == ("int8", "q4", "q2", "fp32")
    assert preferred("genai") == ("q4", "fp32")
    assert without_texts() == "int8, q4, q8, q4f16, fp16 and q2"
    with pytest.raises(InputError, match="there are: int8, q4, q8, w8a16, q4f16, fp16, q2"):
        recipe("q3")


def test_a_forgotten_part_is_an_error_at_once() -> None:
    required = {f.name for f in dataclasses.fields(Recipe) if f.default is dataclasses.MISSING}
    assert {"variant", "summary", "purpose", "apply", "rounded"} <= required
    assert with_texts() == "w8a16"


def test_help_reads_the_registry_without_heavy_imports() -> None:
    code = (
        "import sys, edgepeft.quantize.recipes, edgepeft.executors\n"
        "print([m for m in ('numpy', 'onnx_ir', 'onnx', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
