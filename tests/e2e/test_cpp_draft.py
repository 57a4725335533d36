"""The C++ header with drafts gives the tokens that it gives without, whatever is drafted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from causal import OTHERS, build_generating_bundle, build_other
from stand_in import host_target

from edgepeft import runtime
from edgepeft.devices.executors import cpp as native
from edgepeft.devices.executors.cpp import CppExecutor
from edgepeft.pipeline import export

pytestmark = pytest.mark.e2e

_PROGRAM = """
#include "edgepeft_generate.hpp"

#include <cstdio>
#include <cstdlib>
#include <string>

// graph, adapter or "", states or "", tokens of the answer, end token, ids: a line without drafts, a line with, three times.
int main(int count, char** given) {
  edgepeft::Model model(given[1]);
  const std::string adapter = given[2], states = given[3];
  if (!adapter.empty()) model.load("a", adapter), model.use("a");
  if (!states.empty()) model.load_states("s", states), model.use("s");
  edgepeft::Generator generator(model);
  std::vector<int64_t> prompt;
  for (int i = 6; i < count; ++i) prompt.push_back(std::atoll(given[i]));
  for (int turn = 0; turn < 6; ++turn) {
    size_t heard = 0;
    auto answer = generator.generate(prompt, std::atoll(given[4]), {std::atoll(given[5])}, [&](int64_t) { ++heard; }, turn % 2);
    if (heard != answer.size()) return 1;
    for (int64_t token : answer) std::printf("%lld ", static_cast<long long>(token));
    std::printf("\\n");
  }
}
"""

_COSTS = """
#include "edgepeft_draft.hpp"

#include <cstdio>
#include <cstdlib>

// What follows a text (ids), by what was given of it: the draft after each token, where every run costs the same.
int main(int count, char** given) {
  edgepeft::RunCosts costs;
  for (int turn = 0; turn < 3; ++turn)
    for (size_t tokens = 1; tokens <= 16; ++tokens) costs.add(tokens, 0.01);
  edgepeft::Drafter drafter;
  for (int i = 1; i < count; ++i) {
    drafter.add(std::atoll(given[i]));
    for (int64_t token : drafter.draft(costs, 15)) std::printf("%lld ", static_cast<long long>(token));
    std::printf("\\n");
  }
  edgepeft::RunCosts some;
  for (int turn = 0; turn < 3; ++turn) some.add(1, 0.01), some.add(2, 0.012), some.add(4, 0.02);
  std::printf("%.3f %.3f %.3f %.3f\\n", some.of(1), some.of(2), some.of(3), some.of(5));
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cpp-draft")
    if missing := CppExecutor(host_target(made)).missing():
        pytest.skip(f"no C++ here: {missing[0].what} ({missing[0].remedy})")
    return made


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    (folder / "draft.cpp").write_text(_PROGRAM, encoding="utf-8")
    return native.build_program(folder / "draft.cpp", folder / "built")


def lines(program: Path, *words: object) -> list[str]:
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


REPEATED = "the film was very good and the end of the film was very good and the end"


@pytest.mark.parametrize("name", [None, "wide", "narrow", "prefix"])
def test_the_same_tokens(name: str | None, program: Path, folder: Path) -> None:
    bundle = folder / "bundle"
    if not bundle.is_dir():
        build_generating_bundle(folder)
    view = runtime.open(bundle, threads=1, kernels="off").adapter(name)
    ids = view.generator.tokens.encode(REPEATED, special=True)
    adapter = bundle / "adapters" / f"{name}.onnx_adapter" if name and name != "prefix" else ""
    states = bundle / "adapters" / "prefix.onnx" if name == "prefix" else ""
    for length in (1, 60):
        found = lines(program, bundle / "onnx" / "model.onnx", adapter, states, length, 2, *ids)
        assert len(found) == 6
        assert len(set(found)) == 1
        wanted = view.generate(REPEATED, chat=False, max_new_tokens=length).tokens
        assert tuple(map(int, found[0].split())) == wanted


@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_other_caches(architecture: str, program: Path, folder: Path, tmp_path: Path) -> None:
    """A cache that each run returns longer, and sliding windows; the end token inside a draft."""
    assert architecture in OTHERS
    export(build_other(tmp_path / "model", architecture), {}, tmp_path / "bundle", task="text-generation")
    view = runtime.open(tmp_path / "bundle", threads=1)
    ids = view.generator.tokens.encode(REPEATED, special=True)
    whole = view.generate(REPEATED, chat=False, max_new_tokens=80).tokens
    for end in (2, whole[20]):
        found = lines(program, tmp_path / "bundle" / "onnx" / "model.onnx", "", "", 80, end, *ids)
        assert len(set(found)) == 1
        wanted = whole[: whole.index(end) + 1] if end in whole else whole
        assert tuple(map(int, found[0].split())) == wanted


def test_the_same_drafts_as_in_python(folder: Path) -> None:
    import random

    from edgepeft.runtime.generation.draft import Drafter, RunCosts

    (folder / "costs.cpp").write_text(_COSTS, encoding="utf-8")
    program = native.build_program(folder / "costs.cpp", folder / "costs")
    rng = random.Random(0)
    tokens = [rng.randrange(4) for _ in range(80)] + list(range(10, 30)) * 2
    costs = RunCosts()
    for _ in range(3):
        for count in range(1, 17):
            costs.add(count, 0.01)
    drafter = Drafter([], costs)
    found = lines(program, *tokens)
    for place, token in enumerate(tokens):
        drafter.add(token)
        assert [int(each) for each in found[place].split()] == drafter.draft(15)[1]
    assert found[-1] == "1.000 1.200 1.600 2.333"  # beyond 4 tokens with the slope from 1 to 4
