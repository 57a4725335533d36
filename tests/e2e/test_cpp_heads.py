"""The C++ header that says what logits mean, compiled and compared with the Python runtime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgepeft.bundle import Head
from edgepeft.bundle.heads import ACTIVATIONS, PROBLEM_TYPES
from edgepeft.devices.executors.cpp import source_folder
from edgepeft.runtime.predictions import MultiLabelPrediction, Score, prediction

pytestmark = pytest.mark.e2e

_PROGRAM = """
#include "edgepeft_heads.hpp"
#include <cstdio>
int main(int count, char** given) {
  std::vector<float> logits;
  for (int i = 3; i < count; ++i) logits.push_back(std::stof(given[i]));
  const auto kind = edgepeft::problem_type(given[1], logits.size());
  const auto scores = edgepeft::scores(logits, edgepeft::activation(given[2], kind));
  for (double score : scores) std::printf("%.17g ", score);
  std::printf("|");
  for (size_t place : edgepeft::chosen(scores, kind)) std::printf(" %zu", place);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    folder = tmp_path_factory.mktemp("heads")
    (folder / "main.cpp").write_text(_PROGRAM)
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{source_folder()}"]
    subprocess.run(["g++", *flags, "main.cpp", "-o", "run"], cwd=folder, check=True)
    return folder / "run"


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("problem_type", [None, *PROBLEM_TYPES])
def test_scores_and_labels_are_pythons(program: Path, problem_type: str | None, activation: str | None) -> None:
    """Heads of one, two and five outputs; the largest logit is where a plain exponential overflows."""
    for width in (1, 2, 5):
        logits = np.random.default_rng(width).standard_normal(width).astype(np.float32) * 3
        logits[-1] = 800.0 if width == 5 else logits[-1]
        head = Head(tuple("abcde"[:width]), problem_type, activation)  # type: ignore[arg-type] # parametrized
        arguments = [problem_type or "", activation or "", *map(repr, logits.tolist())]
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=True)
        numbers, _, places = done.stdout.partition("|")
        expected = prediction(logits, head)
        values = expected.values if isinstance(expected, Score) else expected.probabilities
        # The same formula in double precision: a few units in the last place.
        assert np.allclose([float(each) for each in numbers.split()], list(values.values()), rtol=1e-14, atol=1e-300)
        labels: tuple[str, ...] = (expected.label,)
        if isinstance(expected, Score):
            labels = ()
        elif isinstance(expected, MultiLabelPrediction):
            labels = expected.labels
        assert tuple("abcde"[int(place)] for place in places.split()) == labels
