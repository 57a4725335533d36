"""Causal language models in ONNX Runtime Web: the tokens that Python gives, in Node and in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from broken_numbers import break_adapter
from causal import build_causal, build_causal_bundle, save_lora, save_virtual

from edgepeft import runtime
from edgepeft.bench import Case, Job, Prompts, run_worker
from edgepeft.bundle import read_bundle
from edgepeft.devices.executors.web import NodeExecutor, WebExecutor, demo_site, packages
from edgepeft.devices.executors.web.browser import answer_of
from edgepeft.errors import DeviceError, InputError, ParityError
from edgepeft.graph.passes import unpack_int4
from edgepeft.graph.passes.unpack_int4 import SetAccuracyLevel
from edgepeft.pipeline import add, export, quantize, write_input_style
from edgepeft.pipeline._manifest import write_manifest
from edgepeft.runtime.generation.sampling import Sampler, Sampling
from edgepeft.targets import load_target

from .test_web import needs_browser, needs_node
from .test_web_page import as_a_person

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
def test_a_prompt_without_finite_logits_has_no_answer(causal: Path, tmp_path: Path) -> None:
    broken = break_adapter(Path(shutil.copytree(causal, tmp_path / "broken")), "wide")
    prompts = tuple(
        Prompts(adapter=name, texts=("good", "day"), max_new_tokens=3, chat=False) for name in ("wide", "narrow")
    )
    done = NodeExecutor(load_target("web-wasm")).run(job(broken, prompts=prompts))
    wide, narrow = done.generated
    assert wide.tokens == ((), ())
    assert "the model's logits are not finite numbers" in wide.not_finite
    assert (all(narrow.tokens), narrow.not_finite) == (True, "")


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
    stored = unpack_int4._stored
    monkeypatch.setattr(unpack_int4, "_stored", lambda numbers, *rest: stored(numbers ^ 1, *rest))
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
    SetAccuracyLevel(0)(graph)
    (full / file).unlink()
    ir.save(graph, full / file)
    write_manifest(full, manifest, {name: entry for name, entry in manifest.files.items() if name != file})
    done = NodeExecutor(load_target("web-wasm")).run(job(packed, variant="q4"))
    native = run_worker(job(full, variant="q4"))
    assert [g.tokens for g in done.generated] == [g.tokens for g in native.generated]
    assert done.base_restored is True


@needs_node
def test_half_precision_writes_in_webassembly(causal: Path, tmp_path: Path) -> None:
    """Reference: fp32. WebAssembly widens float16; a random model's best token leads by more than rounding in most places.

    The cache is float16 in and out, drafts that were wrong are taken from it again, and adapters are cast when they are loaded.
    """
    own = Path(shutil.copytree(causal, tmp_path / "own"))
    quantize(own, "q4", method="rtn")
    for variant in ("fp16", "q4f16"):
        quantize(own, variant)
    write_input_style(own)
    for variant, of in (("fp16", "fp32"), ("q4f16", "q4")):
        done = NodeExecutor(load_target("web-wasm")).run(job(own, variant=variant))
        native = run_worker(job(own, variant=of))
        pairs = [
            (a[0], b[0])
            for mine, theirs in zip(done.generated, native.generated, strict=True)
            for a, b in zip(mine.tokens, theirs.tokens, strict=True)
        ]
        assert sum(a == b for a, b in pairs) >= 0.75 * len(pairs), (variant, pairs)
        assert len({g.tokens for g in done.generated}) > 3, "adapters and the template change what comes"
        assert done.base_restored is True


@needs_node
def test_shapes_are_not_measured(causal: Path) -> None:
    with pytest.raises(DeviceError, match="ask for prompts, which tell milliseconds and tokens/s"):
        NodeExecutor(load_target("web-wasm")).run(job(causal, cases=(Case(adapter=None, batch=1, sequence=8),)))


def greedy_cases(model: runtime.Runtime, names: list[str | None]) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Every kind of prompt with every adapter."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "good?"}]
    prompts: list[tuple[Any, dict[str, Any]]] = [
        ("good", {"chat": False}), ("good", {}), (messages, {}), ("good", {"system": "Be brief."}), ("a b " * 30, {"chat": False}),
    ]  # fmt: skip
    return [(name, prompt, {**options, "temperature": 0}) for name in names for prompt, options in prompts]


def generated(model: runtime.Runtime, cases: list[tuple[Any, Any, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What Python gives for each case, with the options as JavaScript names them."""
    names = {"top_k": "topK", "top_p": "topP", "repetition_penalty": "repetitionPenalty"}
    found = []
    for adapter, prompt, options in cases:
        done = model.use(adapter).generate(prompt, max_new_tokens=24, **options)
        asked = {names.get(name, name): value for name, value in options.items()} | {"maxNewTokens": 24}
        found.append({"adapter": adapter, "prompt": prompt, "options": asked, "tokens": list(done.tokens), "text": done.text,
                      "finish": done.finish_reason})  # fmt: skip
    return found


def picks() -> list[dict[str, Any]]:
    """Tokens that Python's sampler picks from random logits, several from each."""
    random = np.random.default_rng(5)
    found = []
    for options in (
        {"temperature": 1.0, "seed": 3}, {"temperature": 0.4, "seed": 2**40 + 1}, {"temperature": 1e-9, "seed": 1},
        {"temperature": 1.5, "top_k": 5, "seed": 0}, {"temperature": 1.0, "top_k": 1000, "seed": 4},
        {"temperature": 1.0, "top_p": 0.6, "seed": 9}, {"temperature": 1.0, "top_p": 1e-6, "seed": 2},
        {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 11}, {"temperature": 0.0, "repetition_penalty": 1.7},
        {"temperature": 0.8, "repetition_penalty": 1.3, "seed": 6},
    ):  # fmt: skip
        logits = (random.standard_normal((12, 97)) * 4).astype(np.float32)
        if "top_k" not in options:  # of equal ones at its edge, which numpy keeps is not said
            logits[0, 10:20] = logits[0].max()  # the first of them is first
        sampler = Sampler(Sampling(**options), 0, [1, 5, 7])
        tokens = [sampler.pick(row) for row in logits]
        found.append({"options": options, "prompt": [1, 5, 7], "logits": logits.tolist(), "tokens": tokens})
    return found


def run_module(bundle: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    """Every case of targets/web/test/against_python/generate.test.js and sampling.test.js."""
    (tmp_path / "generated.json").write_text(json.dumps(expected))
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    )
    (module / "node_modules").symlink_to(packages.install() / "node_modules")
    tests = module / "test" / "against_python"
    done = subprocess.run(
        ["node", "--test", *(str(tests / f"{name}.test.js") for name in ("generate", "sampling"))],
        env={**os.environ, "EDGEPEFT_TEST_CAUSAL": str(bundle), "EDGEPEFT_TEST_GENERATED": str(tmp_path / "generated.json")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    failed = [part for part in done.stdout.split("# Subtest: ") if "\n    not ok" in part or "\nnot ok" in part]
    assert done.returncode == 0, "\n".join(failed)[-6000:] or done.stderr


def refusal(model: runtime.Runtime, use: Callable[[], Any]) -> str:
    """What Python says; JavaScript says it in the same words."""
    with pytest.raises(InputError) as caught:
        use()
    return str(caught.value).partition(". ")[0]


@needs_node
def test_the_module_against_python(causal: Path, tmp_path: Path) -> None:
    """Templates, stop texts, end tokens, lengths, blends and sampling: the tokens are Python's."""
    model = runtime.open(causal)
    whole = model.use("wide").generate("good", max_new_tokens=24, temperature=0, chat=False).text
    cases = greedy_cases(model, [None, "wide", "narrow"])
    cases.append(("wide", "good", {"chat": False, "temperature": 0, "stop": [whole[len(whole) // 2 :][:2]]}))
    cases += [
        (blend, "good", {"chat": False, "temperature": 0}) for blend in ({"wide": 0.7, "narrow": 0.6}, {"narrow": -1.5})
    ]
    cases += [
        (name, prompt, {"chat": False, "draft": "prompt", **sampled})
        for name in (None, "wide")
        for prompt in ("good", "the film was very good and the end of the film was very good and the end")
        for sampled in ({"temperature": 0}, {"temperature": 0.3, "seed": 5})
    ]
    cases.append(
        ("wide", "good", {"chat": False, "temperature": 0, "draft": "prompt", "stop": [whole[len(whole) // 2 :][:2]]})
    )
    # A random model's logits at half its temperature: many tokens are possible, so draws decide.
    sampled: list[dict[str, Any]] = [
        {"temperature": 2.0, "seed": 1}, {"temperature": 2.0, "seed": 2}, {"top_k": 8, "seed": 1},
        {"temperature": 3.0, "top_p": 0.8, "seed": 7}, {"temperature": 0, "repetition_penalty": 1.5},
    ]  # fmt: skip
    cases += [("wide", "good", {"chat": False, **options}) for options in sampled]
    expected = generated(model, cases)
    assert [each["finish"] for each in expected].count("stop") == 2
    assert len({tuple(each["tokens"]) for each in expected[-len(sampled) - 2 :]}) == len(sampled) + 2
    seen = [
        np.random.default_rng(seed).random(4).tolist() for seed in ([0, 0], [1, 0], [2**70 + 5, 0], [1, 2, 3, 4, 5, 6])
    ]
    run_module(causal, {"generated": expected, "draws": seen, "picks": picks(), "refused": []}, tmp_path)


@needs_node
def test_the_models_own_settings(causal: Path, tmp_path: Path) -> None:
    """``generation_config.json`` asks for sampling, a length and a penalty: without options both halves do as it says."""
    own = Path(shutil.copytree(causal, tmp_path / "own"))
    settings = {
        "do_sample": True,
        "temperature": 1.7,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "eos_token_id": [2, 0],
    }
    (own / "generation_config.json").write_text(json.dumps(settings))
    manifest = read_bundle(own).manifest
    kept = {name: entry for name, entry in manifest.files.items() if name != "generation_config.json"}
    write_manifest(own, manifest, kept)
    model = runtime.open(own)
    cases = [("wide", "good", {"seed": seed, "chat": False}) for seed in (1, 2, 3)]
    expected = generated(model, [*cases, ("wide", "good", {"temperature": 0, "chat": False})])
    assert len({tuple(each["tokens"]) for each in expected}) == 4
    run_module(own, {"generated": expected, "draws": [], "picks": [], "refused": []}, tmp_path)


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same Llama with prefix tuning, prompt tuning, p-tuning and a LoRA."""
    folder = tmp_path_factory.mktemp("prefixed")
    model = build_causal(folder / "model")
    names = ("prefix", "prompt", "ptuning")
    for name in names:
        save_virtual(folder / name, model, name)
    save_lora(
        folder / "lora", model, task="text-generation", task_type="CAUSAL_LM", scale=0.25, target_modules="all-linear"
    )
    export(model, {name: folder / name for name in (*names, "lora")}, folder / "bundle")
    write_input_style(folder / "bundle")
    return folder / "bundle"


@needs_node
def test_states_before_the_sequence(prefixed: Path, tmp_path: Path) -> None:
    """Reference: Python, whose greedy tokens are PEFT's (tests/model/test_prefix.py). A long prompt goes in pieces."""
    model = runtime.open(prefixed)
    names: list[str | None] = ["prefix", "prompt", "ptuning", "lora", None]
    expected = generated(model, greedy_cases(model, names))
    assert len({tuple(each["tokens"]) for each in expected}) == len(expected), "every adapter changes what comes"
    refused = [
        {"use": ["prefix", {"scale": 0.5}], "says": refusal(model, lambda: model.use("prefix", scale=0.5))},
        {
            "use": [{"lora": 1, "prompt": 0.5}, {}],
            "says": refusal(model, lambda: model.use({"lora": 1, "prompt": 0.5})),
        },
    ]
    run_module(prefixed, {"generated": expected, "draws": [], "picks": [], "refused": refused}, tmp_path)


@needs_browser
def test_states_before_the_sequence_in_chromium(prefixed: Path) -> None:
    """Reference: the same job natively; the base and every adapter come back bit for bit."""
    prompts = tuple(
        Prompts(adapter=name, texts=("good day",), max_new_tokens=12) for name in (None, "prefix", "prompt", "lora")
    )
    asked = Job(bundle=str(prefixed), variant="fp32", threads=1, prompts=prompts, restore=True, swaps=8)
    done, native = WebExecutor(load_target("web-wasm")).run(asked), run_worker(asked)
    assert [g.tokens for g in done.generated] == [g.tokens for g in native.generated]
    assert len({g.tokens for g in done.generated}) == 4
    assert done.base_restored is True


PERSON = as_a_person("""
    await until("the adapters", () => document.querySelector('button[data-name="wide"]'));
    document.querySelector('button[data-name="wide"]').click();
    document.querySelector("#text").value = "good";
    document.querySelector("#generate").click();
    await until("an answer", () => document.querySelector("#times").textContent.includes("tokens/s"));
    answer = { text: document.querySelector("#result").textContent, button: document.querySelector("#generate").textContent };
""")


@needs_browser
def test_the_demo_page(causal: Path) -> None:
    site = demo_site(causal)
    site.add("/person.html", (packages.web_folder() / "page" / "index.html").read_text() + PERSON)
    with site:
        answer, _ = answer_of(packages.find_browser() or "", site, "person.html", 60)
    expected = runtime.open(causal).use("wide").generate("good", max_new_tokens=48, temperature=0).text
    assert json.loads(answer) == {"text": expected, "button": "Generate"}


@pytest.fixture(scope="module")
def speaking(causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with an adapter that brings a tokenizer, a template and an end token of its own."""
    folder = tmp_path_factory.mktemp("speaking")
    checkpoint = Path(shutil.copytree(causal.parent / "wide", folder / "wide"))
    tokenizer = json.loads((causal / "tokenizer.json").read_text(encoding="utf-8"))
    template = (
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if tools %}{{ tools | length }} tools{% endif %}"
        + ("{% if enable_thinking is defined and not enable_thinking %}quick{% endif %}")
    )
    for token in tokenizer["added_tokens"]:
        token["special"] = token["content"] != "<|endoftext|>"
    config = {"eos_token": "good", "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    bundle = Path(shutil.copytree(causal, folder / "bundle"))
    add(bundle, "own", checkpoint)
    assert set(read_bundle(bundle).adapter("own").text) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    return bundle


def speaking_job(bundle: Path) -> Job:
    prompts = tuple(
        Prompts(adapter=name, texts=("good day", "so"), max_new_tokens=12) for name in ("own", "wide", None)
    )
    return job(bundle, prompts=prompts)


@needs_node
def test_adapters_speak_as_their_folders_say(speaking: Path) -> None:
    asked = speaking_job(speaking)
    done = NodeExecutor(load_target("web-wasm")).run(asked)
    native = run_worker(asked)
    assert [g.tokens for g in done.generated] == [g.tokens for g in native.generated]
    assert done.generated[0].tokens != done.generated[1].tokens, "the same tensors behind another prompt"


ANSWERS = """
import { openBundle } from "./src/index.js";
const model = await openBundle(process.argv[2]);
await model.use("own");
const none = { maxNewTokens: 6 };
const tools = [{ name: "a" }, { name: "b" }];
const found = {
  plain: await model.generate("so", none),
  tools: await model.generate("so", { ...none, tools }),
  quick: await model.generate("so", { ...none, enableThinking: false }),
};
found.eos = await model.generate("so", { ...none, eos: found.plain.tokens[1] });
const refused = async (options) => model.generate("so", options).then(() => "", (error) => error.message);
found.refused = [
  await refused({ documents: ["x"] }), await refused({ eos: "<none>" }), await refused({ stop: "a<|im_end|>" }),
  await refused({ tools, chat: false }), await refused({ tools: "x" }),
];
console.log(JSON.stringify(found));
process.exit(0);
"""


@needs_node
def test_template_variables_and_end_tokens_in_node(speaking: Path, tmp_path: Path) -> None:
    """Reference: Python."""
    module = Path(
        shutil.copytree(packages.web_folder(), tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    )
    (module / "node_modules").symlink_to(packages.install() / "node_modules")
    (module / "ask.mjs").write_text(ANSWERS, encoding="utf-8")
    command = ["node", str(module / "ask.mjs"), str(speaking)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    view = runtime.open(speaking).adapter("own")
    tools = [{"name": "a"}, {"name": "b"}]
    for name, options in {"plain": {}, "tools": {"tools": tools}, "quick": {"enable_thinking": False}}.items():
        own = view.generate("so", max_new_tokens=6, temperature=0, **options)  # type: ignore[call-overload]
        assert (found[name]["tokens"], found[name]["promptTokens"]) == (list(own.tokens), own.prompt_tokens), name
    assert len({found[name]["promptTokens"] for name in ("plain", "tools", "quick")}) == 3
    assert (found["eos"]["tokens"], found["eos"]["finish"]) == (found["plain"]["tokens"][:2], "eos")
    for words, said in zip(
        (
            "does not read documents",
            "is no token",
            "holds the special token",
            "is for the chat template",
            "tools is a list",
        ),
        found["refused"],
        strict=True,
    ):
        assert words in said
