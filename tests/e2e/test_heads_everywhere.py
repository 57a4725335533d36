"""Heads of several tasks and kinds over one encoder, as the browser module (in Node) and the C++ header run them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_model
from shared_base import KINDS, save_adapter
from stand_in import host_target

from edgepeft import runtime
from edgepeft.devices.executors.cpp import CppExecutor, build_program
from edgepeft.devices.executors.web import packages
from edgepeft.pipeline import Head, export, write_input_style
from edgepeft.runtime import MultiLabelPrediction

pytestmark = pytest.mark.e2e

TEXTS = ["the film was very good", "bad", "a poor plot , an awful end"]
#: Two builds of ONNX Runtime sum in different orders.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    base = build_model(folder / "base", encoder_only=True)
    adapters = {kind: save_adapter(base, folder / kind, kind) for kind in KINDS}
    export(base, adapters, folder / "b", heads={"topics": Head(tuple("abcd"), "multi_label_classification")})
    write_input_style(folder / "b")
    return folder / "b"


_MODULE = """
import { openBundle } from "./src/index.js";
const model = await openBundle(process.argv[2]);
const texts = JSON.parse(process.argv[3]);
const found = { base: model.task, tasks: {}, outputs: {} };
for (const name of model.adapters) {
  await model.use(name);
  found.tasks[name] = model.task;
  const outputs = Object.entries(await model.forward(model.encode(texts)));
  found.outputs[name] = Object.fromEntries(outputs.map(([key, { data, dims }]) => [key, { data: [...data], dims }]));
}
await model.use("topics");
found.chosen = await model.predict(texts, { threshold: 0.4 });
const rows = ["intent", "topics", "intent"];
found.mixed = [...(await model.forwardMixed(model.encode(texts), rows)).logits.data].map((x) => (Number.isFinite(x) ? x : null));
found.refused = [];
await model.use("entities");
for (const call of [() => model.predict(texts), () => model.forwardMixed(model.encode(texts), ["intent", "entities", null])]) {
  await call().catch((error) => found.refused.push(error.message));
}
console.log(JSON.stringify(found));
await model.close();
"""


@pytest.mark.skipif(packages.find_node() is None or shutil.which("npm") is None, reason="no Node 20 with npm")
def test_the_browser_module(shared: Path, tmp_path: Path) -> None:
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    )
    (module / "node_modules").symlink_to(packages.install() / "node_modules")
    (module / "main.js").write_text(_MODULE)
    command = ["node", "main.js", str(shared), json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=module, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    model = runtime.open(shared)
    assert found["base"] == "feature-extraction"
    assert found["tasks"] == {name: model.adapter(name).task for name in model.adapters}
    inputs = model.encode(TEXTS)
    for name in model.adapters:
        expected = model.adapter(name).forward(inputs)
        assert found["outputs"][name].keys() == expected.keys()
        for output, array in expected.items():
            mine = found["outputs"][name][output]
            assert mine["dims"] == list(array.shape)
            assert np.abs(np.array(mine["data"]).reshape(array.shape) - array).max() < CLOSE
    for mine, theirs in zip(found["chosen"], model.adapter("topics").predict(TEXTS, threshold=0.4), strict=True):
        assert isinstance(theirs, MultiLabelPrediction)
        assert mine["labels"] == list(theirs.labels)
        assert mine["probabilities"] == pytest.approx(theirs.probabilities, abs=CLOSE)
    mixed = model.forward(inputs, adapters=["intent", "topics", "intent"])["logits"].reshape(-1)
    assert [number is None for number in found["mixed"]] == np.isinf(mixed).tolist()
    pairs = [(x, y) for x, y in zip(found["mixed"], mixed, strict=True) if x is not None]
    assert max(abs(x - y) for x, y in pairs) < CLOSE
    assert found["refused"][0] == "this bundle's task is token-classification; use encode and forward"
    assert found["refused"][1].startswith(
        "the adapters of a batch are for text-classification, token-classification, feature-extraction, whose outputs"
    )


_PROGRAM = """
#include "edgepeft.hpp"
#include <cstdio>
#include <iostream>
// graph, adapter's name and file, output, rows, tokens; then the inputs: a name and its numbers
int main(int, char** given) {
  edgepeft::Model model(given[1]);
  model.load(given[2], given[3]);
  model.use(given[2]);
  const int64_t rows = std::stoll(given[5]), tokens = std::stoll(given[6]);
  std::map<std::string, std::vector<int64_t>> inputs;
  for (std::string name; std::cin >> name;) {
    auto& values = inputs[name];
    values.resize(rows * tokens);
    for (auto& value : values) std::cin >> value;
  }
  const auto found = model.run(inputs, rows, tokens, given[4]);
  std::printf("%lld %lld %lld", static_cast<long long>(found.rows), static_cast<long long>(found.tokens), static_cast<long long>(found.labels));
  for (float value : found.values) std::printf(" %.9g", value);
}
"""  # noqa: E501 - C++


def test_the_cpp_header(shared: Path, tmp_path: Path) -> None:
    """Each adapter's output by the name that ``tasks`` gives it: the same library and tokens, so the same bits."""
    (tmp_path / "target").mkdir()
    executor = CppExecutor(host_target(tmp_path / "target"))
    if missing := executor.missing():
        pytest.skip(f"no C++ here: {missing[0].what} ({missing[0].remedy})")
    (tmp_path / "main.cpp").write_text(_PROGRAM)
    program = build_program(tmp_path / "main.cpp", tmp_path / "built")
    model = runtime.open(shared, threads=1)
    inputs = model.encode(TEXTS)
    text = " ".join(f"{name} {' '.join(map(str, array.reshape(-1)))}" for name, array in inputs.items())
    rows, tokens = inputs["input_ids"].shape
    for name, entry in model.manifest.adapters.items():
        expected = model.adapter(name).forward(inputs)
        for own, output in model.manifest.tasks[entry.task or ""].outputs.items():
            files = [str(shared / "onnx" / "model.onnx"), name, str(shared / entry.onnx_adapter)]
            command: list[Any] = [program, *files, output, str(rows), str(tokens)]
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=True)
            sizes, numbers = done.stdout.split()[:3], done.stdout.split()[3:]
            array = expected[own]
            assert [int(size) for size in sizes] == [rows, array.shape[1] if array.ndim == 3 else 1, array.shape[-1]]
            assert np.array_equal(np.array(numbers, np.float32).reshape(array.shape), array)
