"""Causal language models in ONNX Runtime Web: the tokens that Python gives, in Node and in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from causal import build_causal_bundle

from edgepeft import runtime
from edgepeft.bench import Case, Job, Prompts, run_worker
from edgepeft.bundle import read_bundle
from edgepeft.devices.web import NodeExecutor, WebExecutor, demo_site, packages
from edgepeft.devices.web.browser import answer_of
from edgepeft.errors import DeviceError, ParityError
from edgepeft.graph.unpack import set_accuracy_level
from edgepeft.pipeline import quantize, write_input_style
from edgepeft.pipeline._write import write_manifest
from edgepeft.targets import load_target

from .test_web import needs_browser, needs_node

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with grouped queries and two adapters, with a graph for the web."""
    folder = build_causal_bundle(tmp_path_factory.mktemp("causal"))
    write_input_style(folder)
    return folder


def job(bundle: Path, **options: Any) -> Job:
    prompts = [
        Prompts(adapter=name, texts=("good day", "Ünïcode 👍"), max_new_tokens=12, chat=chat)
        for name in (None, "wide", "narrow")
        for chat in (None, False)
    ]
    return Job(
        **{
            "bundle": str(bundle),
            "variant": "fp32",
            "threads": 1,
            "prompts": tuple(prompts),
            "restore": True,
            **options,
        }
    )


def check(asked: Job, done: Any) -> None:
    """Reference: the same job natively. The very same tokens: gaps between a random model's logits are far above rounding."""
    native = run_worker(asked.model_copy(update={"swaps": 0}))
    assert [g.tokens for g in done.generated] == [g.tokens for g in native.generated]
    assert [g.texts for g in done.generated] == [g.texts for g in native.generated]
    assert len({g.tokens for g in done.generated}) > 3, "adapters and the template change what comes"
    assert done.base_restored is True


@needs_node
def test_a_job_in_node(causal: Path) -> None:
    asked = job(causal, swaps=10)
    done = NodeExecutor(load_target("web-wasm")).run(asked)
    check(asked, done)
    assert done.swap is not None
    assert len(done.swap.first_inference_ms) == 3
    assert all(ms > 0 for g in done.generated for ms in g.prefill_ms)


@needs_browser
def test_a_job_in_chromium(causal: Path) -> None:
    asked = job(causal)
    check(asked, WebExecutor(load_target("web-wasm")).run(asked))


@pytest.fixture(scope="module")
def packed(causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with q4, its weights unpacked by the graph for the web."""
    folder = Path(shutil.copytree(causal, tmp_path_factory.mktemp("packed") / "bundle"))
    quantize(folder, "q4")
    write_input_style(folder, "q4")
    return folder


def test_four_bit_weights_are_unpacked_from_the_same_file(packed: Path) -> None:
    bundle = read_bundle(packed)
    entry = bundle.manifest.variants["q4"]
    assert entry.input_unpacked
    assert not bundle.manifest.variants["fp32"].input_unpacked
    first, second = ir.load(packed / entry.file).graph, ir.load(packed / (entry.input_file or "")).graph
    before = sum(node.op_type == "MatMulNBits" for node in first)
    kinds = [node.op_type for node in second]
    assert before > 0
    assert kinds.count("DequantizeLinear") == before
    assert "MatMulNBits" not in kinds
    stored = [t for v in second.initializers.values() if isinstance(t := v.const_value, ir.ExternalTensor)]
    assert {Path(t.location).name for t in stored} == {"model_q4.onnx_data"}
    assert any(t.dtype == ir.DataType.UINT4 for t in stored)


def test_a_wrong_zero_point_is_caught_and_nothing_is_written(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(packed, tmp_path / "own"))
    before = {p: p.read_bytes() for p in own.rglob("*") if p.is_file()}
    monkeypatch.setattr("edgepeft.graph.unpack._MIDDLE", 0x77)
    with pytest.raises(ParityError, match="with unpacked weights the outputs differ by"):
        write_input_style(own, "q4")
    assert {p: p.read_bytes() for p in own.rglob("*") if p.is_file()} == before


@needs_node
def test_four_bit_tokens_are_those_of_fp32_activations(packed: Path, tmp_path: Path) -> None:
    """Reference: natively the same weights at accuracy_level 0. The very same tokens, as above."""
    full = Path(shutil.copytree(packed, tmp_path / "full"))
    manifest = read_bundle(full).manifest
    file = manifest.variants["q4"].file
    graph = ir.load(full / file)
    set_accuracy_level(graph, 0)
    (full / file).unlink()
    ir.save(graph, full / file)
    write_manifest(full, manifest, {name: entry for name, entry in manifest.files.items() if name != file})
    done = NodeExecutor(load_target("web-wasm")).run(job(packed, variant="q4"))
    native = run_worker(job(full, variant="q4"))
    assert [g.tokens for g in done.generated] == [g.tokens for g in native.generated]
    assert done.base_restored is True


@needs_node
def test_shapes_are_not_measured(causal: Path) -> None:
    with pytest.raises(DeviceError, match="ask for prompts, which tell milliseconds and tokens/s"):
        NodeExecutor(load_target("web-wasm")).run(job(causal, cases=(Case(adapter=None, batch=1, sequence=8),)))


@needs_node
def test_the_module_against_python(causal: Path, tmp_path: Path) -> None:
    """Every case of targets/web/test/generate.test.js: templates, stop texts, end tokens, lengths."""
    model = runtime.open(causal)
    whole = model.use("wide").generate("good", max_new_tokens=24, temperature=0, chat=False).text
    cut = whole[len(whole) // 2 :][:2]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "good?"}]
    asked: list[tuple[str | None, Any, dict[str, Any]]] = [
        (name, prompt, options)
        for name in (None, "wide", "narrow")
        for prompt, options in (
            ("good", {"chat": False}),
            ("good", {}),
            (messages, {}),
            ("good", {"system": "Be brief."}),
            ("a b " * 40, {"chat": False}),
        )
    ]
    asked.append(("wide", "good", {"chat": False, "stop": [cut]}))
    expected = []
    for name, prompt, options in asked:
        found = model.use(name).generate(prompt, max_new_tokens=24, temperature=0, **options)
        expected.append(
            {"adapter": name, "prompt": prompt, "options": {**options, "maxNewTokens": 24}, "tokens": list(found.tokens),
             "text": found.text, "finish": found.finish_reason}
        )  # fmt: skip
    assert expected[-1]["finish"] == "stop"
    (tmp_path / "generated.json").write_text(json.dumps(expected))
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    )
    (module / "node_modules").symlink_to(packages.install() / "node_modules")
    done = subprocess.run(
        ["node", "--test", str(module / "test" / "generate.test.js")],
        env={**os.environ, "EDGEPEFT_TEST_CAUSAL": str(causal), "EDGEPEFT_TEST_GENERATED": str(tmp_path / "generated.json")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    failed = [part for part in done.stdout.split("# Subtest: ") if "\n    not ok" in part or "\nnot ok" in part]
    assert done.returncode == 0, "\n".join(failed)[-6000:] or done.stderr


PERSON = """
<script type="module">
  const until = async (what, holds) => {
    for (let i = 0; i < 400; i++) {
      if (holds()) return;
      const error = document.querySelector("#error");
      if (!error.hidden) throw new Error(error.textContent);
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`waited in vain for ${what}`);
  };
  let answer;
  try {
    await until("the adapters", () => document.querySelector('button[data-name="wide"]'));
    document.querySelector('button[data-name="wide"]').click();
    document.querySelector("#text").value = "good";
    document.querySelector("#generate").click();
    await until("an answer", () => document.querySelector("#times").textContent.includes("tokens/s"));
    answer = { text: document.querySelector("#result").textContent, button: document.querySelector("#generate").textContent };
  } catch (error) {
    answer = { error: String(error) };
  }
  await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
</script>
"""


@needs_browser
def test_the_demo_page(causal: Path) -> None:
    site = demo_site(causal)
    site.add("/person.html", (packages.web_folder() / "page" / "index.html").read_text() + PERSON)
    with site:
        answer, _ = answer_of(packages.find_browser() or "", site, "person.html", 60)
    expected = runtime.open(causal).use("wide").generate("good", max_new_tokens=48, temperature=0).text
    assert json.loads(answer) == {"text": expected, "button": "Generate"}
