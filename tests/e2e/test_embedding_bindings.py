"""Embeddings in the browser's module (in Node) and in C++ are those of Python, which are sentence-transformers'."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import save_lora
from sentence_folders import TEXTS, library, random_module, save_sentence, worst

from edgepeft import pipeline, runtime
from edgepeft.bundle import NO_TEXT
from edgepeft.devices.executors.cpp import find_library, source_folder
from edgepeft.devices.executors.debian import host_architecture, unpack
from edgepeft.devices.executors.web import packages

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bundle(models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that pools with a prompt left out, an adapter with pooling and limit of its own, and one without."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    work = tmp_path_factory.mktemp("embedding")
    encoder = models("bert", "feature-extraction")
    prompts = {"query": "the end : ", "plain": ""}
    base = save_sentence(
        work / "base", encoder, [Pooling(32, ("cls", "weightedmean"), include_prompt=False), random_module(Dense(64, 16))],
        limit=24, prompts=prompts, default_prompt_name="query",
    )  # fmt: skip
    own = save_sentence(work / "own", encoder, [Pooling(32, "lasttoken"), Normalize()], limit=12)
    for name in ("config.json", "model.safetensors"):
        (own / name).unlink()
    for folder, seed in ((own, 1), (work / "plain", 2)):
        save_lora(folder, base, task="feature-extraction", task_type="FEATURE_EXTRACTION", seed=seed)
    out = work / "bundle"
    pipeline.export(base, {"own": own, "plain": work / "plain"}, out)
    with runtime.open(out, threads=1) as model:
        assert worst(model.embed(TEXTS), library(base, TEXTS)) < 1e-5
        assert worst(model.adapter("own").embed(TEXTS), library(own, TEXTS)) < 1e-5
    return out


@pytest.mark.skipif(packages.find_node() is None or shutil.which("npm") is None, reason="no Node 20 with npm")
def test_the_browsers_module(bundle: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    webbed = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert cli("web", "prepare", webbed).exit_code == 0
    options: list[dict[str, Any]] = [
        {},
        {"prompt_name": "plain"},
        {"prompt": "a very good book ."},
        {"dim": 5, "normalize": True},
    ]
    cases: list[dict[str, Any]] = []
    with runtime.open(webbed, threads=1) as model:
        uses: list[tuple[Any, str | None]] = [
            (None, None),
            ("plain", None),
            ("own", None),
            ({"own": 1.0, "plain": 0.5}, "own"),
        ]
        for use, head in uses:
            view = model.adapter(use, head=head)
            for each in options:
                if each.get("prompt_name") and use not in (None, "plain"):
                    continue
                rows = view.embed(TEXTS, **each).tolist()
                said = {{"prompt_name": "promptName"}.get(key, key): value for key, value in each.items()}
                cases.append({"use": use, "head": head, "options": said, "rows": rows})
    refused: list[dict[str, Any]] = [
        {"use": None, "options": {"promptName": "nope"}, "says": "there is no prompt 'nope' here; known are: "},
        {"use": None, "options": {"dim": 17}, "says": "dim must be a whole number from 1 to 16"},
        {
            "use": {"own": 1.0, "plain": 0.5},
            "options": {},
            "says": "adapters 'own' and 'plain' embed texts differently",
        },
    ]
    expected = {"bundle": str(webbed), "texts": TEXTS, "cases": cases, "refused": refused}
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    )
    (module / "node_modules").symlink_to(packages.install() / "node_modules")
    done = subprocess.run(
        ["node", "--test", str(module / "test/against_python/embedding.test.js")],
        env={**os.environ, "EDGEPEFT_TEST_EXPECTED": str(tmp_path / "expected.json")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] or done.stderr
    assert f"# pass {len(cases) + len(refused)}" in done.stdout


_PROGRAM = """
#include "edgepeft_embed.hpp"
#include <cstdio>
#include <iostream>
int main(int, char** given) {
  edgepeft::Model model(given[1]);
  model.load("it", given[3]);
  model.use("it");
  edgepeft::Embedder embedder(model, given[2]);
  int64_t rows, tokens, count, prompt, dimension, normalize;
  std::cin >> rows >> tokens >> count >> prompt >> dimension >> normalize;
  std::map<std::string, std::vector<int64_t>> inputs;
  for (; count > 0; --count) {
    std::string name;
    std::cin >> name;
    for (int64_t i = 0; i < rows * tokens; ++i) {
      int64_t value;
      std::cin >> value;
      inputs[name].push_back(value);
    }
  }
  auto found = embedder.embed(inputs, rows, tokens, prompt, dimension, normalize != 0);
  std::printf("%lld %lld", static_cast<long long>(found.rows), static_cast<long long>(found.dimension));
  for (float value : found.values) std::printf(" %.9g", value);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library_file = find_library()
    if shutil.which("g++") is None or shutil.which("apt-get") is None or library_file is None:
        pytest.skip("no C++ here: g++, apt-get or libonnxruntime.so is missing")
    folder = tmp_path_factory.mktemp("embed")
    unpack([f"libonnxruntime-dev:{host_architecture()}"], folder / "headers", suite="trixie")
    headers = next((folder / "headers").rglob("onnxruntime_cxx_api.h")).parent
    (folder / "lib").mkdir()
    (folder / "lib/libonnxruntime.so.1").symlink_to(library_file)
    (folder / "main.cpp").write_text(_PROGRAM)
    subprocess.run(
        ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{source_folder()}", f"-isystem{headers}", "main.cpp",
         "lib/libonnxruntime.so.1", "-Wl,-rpath,$ORIGIN/lib", "-o", "run"],
        cwd=folder, check=True,
    )  # fmt: skip
    return folder / "run"


@pytest.mark.parametrize(("name", "dim"), [("plain", 0), ("plain", 5), ("own", 0)])
def test_cpp(name: str, dim: int, bundle: Path, program: Path) -> None:
    with runtime.open(bundle, threads=1) as model:
        view = model.adapter(name)
        embedding = model.manifest.adapters[name].embedding or model.manifest.embedding
        assert embedding is not None
        prompt = embedding.prompts[embedding.default_prompt] if embedding.default_prompt else ""
        encoder = model.engine.encoder_of(NO_TEXT, embedding.max_length)
        inputs = encoder.encode([prompt + text for text in TEXTS])
        skipped = encoder.prompt_length(prompt)
        expected = view.embed(TEXTS, **({"dim": dim, "normalize": True} if dim else {}))
    rows, tokens = inputs["input_ids"].shape
    numbers = [rows, tokens, len(inputs), skipped, dim, int(dim > 0)]
    words = [*numbers, *(word for key, array in inputs.items() for word in (key, *array.ravel()))]
    files = [bundle / "onnx/model.onnx", bundle / embedding.graph, bundle / f"adapters/{name}.onnx_adapter"]
    done = subprocess.run(
        [program, *files], input=" ".join(map(str, words)), capture_output=True, text=True, timeout=60, check=True
    )
    count, size, *values = done.stdout.split()
    found = np.array(values, np.float32).reshape(int(count), int(size))
    assert np.array_equal(found, expected) if not dim else worst(found, expected) < 1e-6
