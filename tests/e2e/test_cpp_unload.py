"""The C++ header frees adapters, and never one that is in use: ONNX Runtime would read freed memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from stand_in import host_target

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.devices.executors import cpp as native
from edgepeft.devices.executors.cpp import CppExecutor

pytestmark = pytest.mark.e2e

_PROGRAM = """
#include "edgepeft.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

// Prints logits of token ids (argv[4…]) before and after 100 loads and unloads, and what is refused.
int main(int count, char** given) {
  edgepeft::Model model(given[1]);
  const std::string reviews = given[2], movies = given[3];
  std::vector<int64_t> ids, ones, zeros;
  for (int i = 4; i < count; ++i) ids.push_back(std::atoll(given[i])), ones.push_back(1), zeros.push_back(0);
  auto show = [&](const char* what) {
    auto found = model.run({{"input_ids", ids}, {"attention_mask", ones}, {"token_type_ids", zeros}}, 1, ids.size());
    std::printf("%s", what);
    for (float value : found.values) std::printf(" %.9g", value);
    std::printf("\\n");
  };
  auto refused = [](const char* what, auto call) {
    try {
      call();
    } catch (const std::exception& error) {
      std::printf("refused %s: %s\\n", what, error.what());
    }
  };
  model.load("reviews", reviews);
  model.load("movies", movies);
  model.use("reviews");
  show("before");
  model.unload("movies");
  show("beside");
  refused("unload", [&] { model.unload("reviews"); });
  refused("load", [&] { model.load("reviews", movies); });
  refused("use", [&] { model.use("movies"); });
  refused("unknown", [&] { model.unload("movies"); });
  show("still");
  for (int i = 0; i < 100; ++i) {
    model.use("");
    model.unload("reviews");
    model.load("reviews", reviews);
    model.use("reviews");
  }
  show("after");
  model.use("");
  model.load("reviews", movies);  // another file under a name that is not in use
  model.use("reviews");
  show("replaced");
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    executor = CppExecutor(host_target(tmp_path_factory.mktemp("target")))
    if missing := executor.missing():
        pytest.skip(f"no C++ here: {missing[0].what} ({missing[0].remedy})")
    folder = tmp_path_factory.mktemp("unload")
    (folder / "unload.cpp").write_text(_PROGRAM)
    return native.build_program(folder / "unload.cpp", folder / "built")


def test_loading_and_unloading(bundle: Path, program: Path) -> None:
    model = runtime.open(bundle, threads=1)
    adapters = {name: bundle / read_bundle(bundle).adapter(name).onnx_adapter for name in ("reviews", "movies")}
    inputs = model.encode(["the film was not very good"])
    ids = inputs["input_ids"][0].tolist()
    command = [program, bundle / "onnx" / "model.onnx", adapters["reviews"], adapters["movies"], *map(str, ids)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if not line.startswith("refused"))
    expected = {name: model.adapter(name).forward(inputs)["logits"][0] for name in adapters}
    assert not np.allclose(expected["reviews"], expected["movies"][: len(expected["reviews"])], atol=1e-3)
    for what in ("before", "beside", "still", "after"):  # the same library: the same bits
        assert np.array_equal(np.float32(lines[what].split()), expected["reviews"]), what
    assert np.array_equal(np.float32(lines["replaced"].split()), expected["movies"])
    refusals = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    assert [line.split(":")[0] for line in refusals] == [
        "refused unload",
        "refused load",
        "refused use",
        "refused unknown",
    ]
    assert "'reviews' is in use, so it cannot be unloaded" in refusals[0]
    assert "no adapter 'movies' was loaded" in refusals[3]
