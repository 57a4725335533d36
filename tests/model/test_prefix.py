"""Adapters that put states before the sequence, over causal language models: against PEFT, at export and generating.

The trained numbers are random. Logits are compared at export to 1e-4 of the largest (the project's tolerance for a base);
greedy tokens exactly. PEFT's own ``generate`` is not the reference for padded batches: each prompt is run by itself.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import CONTEXT, METHODS, TASKS, build_causal, build_other, of_task, save_lora, save_virtual
from click.testing import CliRunner

from edgepeft import runtime
from edgepeft.adapters.base_weights import HeldWeights
from edgepeft.adapters.describe import describe_adapter
from edgepeft.adapters.read import read_adapter
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.errors import AdapterError, AdapterMismatchError, InputError, NeedsPeftError, UnsupportedAdapterError
from edgepeft.pipeline import add, export, quantize, remove, write_static
from edgepeft.runtime import Runtime
from edgepeft.runtime.generation import Options
from edgepeft.runtime.generation import decoder as decoders
from edgepeft.targets import load_target

PROMPTS = ["the film was", "a", "the end of the book was not very good", "naïve 日本 café"]
RAW: Any = {"chat": False, "max_new_tokens": 20}


def peft_model(model: Path, checkpoint: Path | None) -> Any:
    """PEFT's model; one sequence at a time where it holds several tasks."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    if checkpoint is None:
        return base.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(base, checkpoint).eval()
    if checkpoint.name in TASKS:
        tasks = {"task_ids": torch.tensor([TASKS[checkpoint.name]])}
        wrapped.register_forward_pre_hook(lambda module, args, given: (args, {**given, **tasks}), with_kwargs=True)
    return wrapped


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The most likely tokens, each by a run over the whole sequence, without a cache to be wrong about; eos is 2."""
    import torch

    found: list[int] = []
    with torch.no_grad():
        while len(found) < count and found[-1:] != [2]:
            logits = model(input_ids=torch.tensor([[*ids, *found]])).logits
            found.append(int(logits[0, -1].argmax()))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, a checkpoint for each of ``METHODS`` and a LoRA, and ``bundle`` of them all."""
    path = tmp_path_factory.mktemp("prefix")
    build_causal(path / "model")
    for name in METHODS:
        save_virtual(path / name, path / "model", name)
    save_lora(path / "lora", path / "model", task="text-generation", task_type="CAUSAL_LM", scale=0.25, r=4, seed=1,
              target_modules="all-linear")  # fmt: skip
    done = export(path / "model", {name: of_task(path / name) for name in (*METHODS, "lora")}, path / "bundle")
    (path / "parity.json").write_text(json.dumps({each.adapter: each.max_difference for each in done.parity}))
    assert all(each.changes_output for each in done.parity)
    return path


@pytest.fixture(scope="module")
def opened(folder: Path) -> Runtime:
    return runtime.open(folder / "bundle", threads=1)


@pytest.fixture
def model(opened: Runtime) -> Runtime:
    return opened.use(None)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[list[int]]]:
    """What PEFT goes on with after each of ``PROMPTS``, by adapter."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = {}
    for name in ("", *METHODS):
        module = peft_model(folder / "model", folder / name if name else None)
        found[name] = [greedy(module, tokenizer(prompt).input_ids, 20) for prompt in PROMPTS]
    return found


def tokens(found: Any) -> list[list[int]]:
    return [list(each.tokens) for each in found]


@pytest.mark.parametrize("name", METHODS)
def test_greedy_tokens_are_pefts(name: str, model: Runtime, expected: dict[str, Any]) -> None:
    """Alone, in a ragged batch, and the base before and after."""
    assert expected[name] != expected[""], "the adapter must change what is generated, or the test shows nothing"
    assert tokens(model.generate(PROMPTS, **RAW)) == expected[""]
    model.use(name)
    assert [list(model.generate(prompt, **RAW).tokens) for prompt in PROMPTS] == expected[name]
    assert tokens(model.generate(PROMPTS, batch_size=3, **RAW)) == expected[name]
    assert tokens(model.use(None).generate(PROMPTS, **RAW)) == expected[""]


def test_parity_was_measured_for_each(folder: Path, note: Callable[[str, str, str, float], None]) -> None:
    parity = json.loads((folder / "parity.json").read_text())
    assert set(parity) == {*METHODS, "lora"}
    assert max(parity.values()) <= 1e-4
    for name, (peft_type, _, _) in METHODS.items():
        note(peft_type, "llama", "swap", parity[name])


def test_the_states_place_matters(model: Runtime) -> None:
    """What the comparisons above rely on: keys that were swapped between layers give other tokens."""
    active = model.adapter("prefix").active
    pasts = {**active.prefix}
    pasts["past_key_values.0.key"], pasts["past_key_values.1.key"] = (
        pasts["past_key_values.1.key"],
        pasts["past_key_values.0.key"],
    )
    wrong = replace(active, prefix=pasts)
    run = model.generator.run([PROMPTS[0]], Options(**RAW), wrong, ["prefix"])
    list(run)
    assert list(run.results()[0].tokens) != list(model.generate(PROMPTS[0], **RAW).tokens)


def test_a_prompt_in_pieces_a_buffer_that_grows_and_a_cache_that_concatenates(
    folder: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = runtime.open(folder / "bundle", threads=1).use("prompt")
    monkeypatch.setattr(decoders, "CHUNK", 4)
    make = type(own.generator).decoder
    monkeypatch.setattr(own.generator, "decoder", lambda active, rows, capacity: make(own.generator, active, rows, 1))
    assert tokens(own.generate(PROMPTS, **RAW)) == expected["prompt"]
    own.generator.signature = replace(own.generator.signature, shared=False)
    assert [list(own.generate(prompt, **RAW).tokens) for prompt in PROMPTS] == expected["prompt"]


def test_a_conversation_keeps_the_states(model: Runtime, expected: dict[str, Any]) -> None:
    chat = model.use("prefix").conversation()
    for prompt in (PROMPTS[2], "the end of the film", PROMPTS[2]):
        found = chat.generate(prompt, **RAW)
        assert found.tokens == model.generate(prompt, **RAW).tokens
    assert found.reused_tokens >= 4
    assert list(found.tokens) == expected["prefix"][2]
    model.use("prompt")
    assert chat.generate(PROMPTS[2], **RAW).reused_tokens == 0


def test_what_the_bundle_says_of_them(folder: Path) -> None:
    manifest = read_bundle(folder / "bundle").manifest
    for name, (_, _, length) in METHODS.items():
        entry = manifest.adapters[name]
        assert entry.prefix_length == length
        assert entry.tensors == {f"prefix.{n}.{kind}": (1, 2, length, 16) for n in (0, 1) for kind in ("key", "value")}
        assert (entry.scalable, entry.per_row, entry.ranks) == (False, False, {})
    assert manifest.adapters["lora"].prefix_length == 0
    shown = CliRunner().invoke(main, ["inspect", str(folder / "bundle")])
    assert shown.exit_code == 0
    assert "7 states before" in shown.output


def test_the_context_counts_the_states(model: Runtime) -> None:
    model.use("prompt")
    with pytest.raises(InputError, match=rf"context is {CONTEXT - 7} tokens beside the adapter's 7 states"):
        model.generate("a", chat=False, max_new_tokens=CONTEXT - 7)
    assert model.generate("a", chat=False, max_new_tokens=CONTEXT - 8).prompt_tokens == 1
    with pytest.raises(InputError, match="beside the adapter's 7 states, prompt and answer"):
        model.generate("é" * CONTEXT, chat=False)


def _arrays(model: Runtime, mask: list[list[int]]) -> dict[str, np.ndarray]:
    array = np.array(mask, np.int64)
    inputs: dict[str, np.ndarray] = {"input_ids": array * 5, "attention_mask": array}
    for value in model.manifest.inputs:
        if value.name.startswith("past_key_values"):
            inputs[value.name] = np.zeros((len(array), 2, 0, 16), np.float32)
    return inputs


def test_masks_that_cannot_follow_the_states(model: Runtime) -> None:
    model.use("prefix")
    for mask in ([[0, 1, 1]], [[1, 1], [0, 0]], [[1, 0, 1]]):
        with pytest.raises(InputError, match="padded on the right"):
            model.forward(_arrays(model, mask))
    with pytest.raises(InputError, match=rf"context of {CONTEXT} tokens; at most {CONTEXT - 5} fit"):
        model.forward(_arrays(model, [[1] * (CONTEXT - 4)]))


def test_refused_in_scales_blends_and_mixed_batches(model: Runtime) -> None:
    for call, said in (
        (lambda: model.use("prefix", scale=0.5), "scaled"),
        (lambda: model.use({"prefix": 0.5, "lora": 0.5}), "blended"),
    ):
        with pytest.raises(InputError, match=rf"'prefix' \(Prefix tuning\) cannot be {said}: it puts 5 states before"):
            call()
    with pytest.raises(
        InputError, match=r"'prompt' \(Prompt tuning\) puts states before the sequence, so its rows are longer"
    ):
        model.generate(PROMPTS[:2], adapters=["prompt", "lora"], chat=False)


def test_not_a_part_of_a_static_graph(folder: Path, tmp_path: Path) -> None:
    target = load_target("ios-coreml")
    target = target.model_copy(update={"graph": target.graph.model_copy(update={"buckets": ("1x8",)})})
    with pytest.raises(InputError, match=r"'prefix' puts 5 states before the sequence: it fills no slots"):
        write_static(folder / "bundle", target, tmp_path / "out", adapter="prefix")


def test_over_quantized_bases_and_through_the_command_line(folder: Path, tmp_path: Path) -> None:
    """4 bits round the base, not the states: what differs from fp32 is of the size of what differs without an adapter."""
    copy = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", copy)
    quantize(copy, "q4", method="rtn")
    own, plain = runtime.open(copy, variant="q4", threads=1), runtime.open(copy, threads=1)
    found = own.use("prefix").generate(PROMPTS, **RAW)
    assert tokens(found) != tokens(own.use(None).generate(PROMPTS, **RAW))
    inputs = _arrays(plain, [[1, 1, 1, 1], [1, 1, 0, 0]])
    rounding = np.abs(own.forward(inputs)["logits"] - plain.forward(inputs)["logits"]).max()
    mine, theirs = (each.use("prefix").forward(inputs)["logits"] for each in (own, plain))
    mask = inputs["attention_mask"][:, :, None]
    assert 0 < np.abs((mine - theirs) * mask).max() < 3 * rounding
    said = CliRunner().invoke(
        main, ["run", str(copy), "--variant", "fp32", "--adapter", "prefix", "--raw", "--prompt", PROMPTS[0], "--json"]
    )
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)[0]["tokens"][:20] == list(plain.generate(PROMPTS[0], **RAW).tokens)


def test_added_later(folder: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    """Prefix tuning without torch; prompt tuning over the base it came from; from the file that another copy exported."""
    copy = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", copy)
    for name in METHODS:
        remove(copy, name)
    for name in ("prefix", "prompt"):
        assert add(copy, name, folder / name).changes_output
    add(copy, "file", folder / "bundle" / "adapters" / "cpt.onnx")
    own = runtime.open(copy, threads=1)
    for name, source in (("prefix", "prefix"), ("prompt", "prompt"), ("file", "cpt")):
        assert tokens(own.use(name).generate(PROMPTS, **RAW)) == expected[source]


def test_read_with_and_without_the_base(folder: Path) -> None:
    weights = HeldWeights({})
    for name in ("prefix", "projected", "cartridge"):
        adapter = read_adapter(folder / name, name=name, weights=weights)
        assert adapter.prefix is not None
        assert adapter.prefix.states.shape == (2, 2, 2, METHODS[name][2], 16)
        assert adapter.exactness.exact
    for name in ("prompt", "ptuning", "cpt", "multitask"):
        with pytest.raises(NeedsPeftError, match="running its base over the virtual tokens"):
            read_adapter(of_task(folder / name), name=name, weights=weights)
    for name in METHODS:
        source = of_task(folder / name)
        with pytest.raises(UnsupportedAdapterError, match=r"cannot be merged\. Export it with --mode swap"):
            read_adapter(source, name=name, weights=weights, mode="merge")
        assert describe_adapter(source).mode == "swap"


def test_damaged_checkpoints(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    def damaged(name: str, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
        out = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder / name, out)
        file = out / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        save_file(
            {**load_file(out / "adapter_model.safetensors"), **(tensors or {})}, out / "adapter_model.safetensors"
        )
        return out

    def read(source: Path | str) -> Any:
        return read_adapter(
            source, name="a", weights=HeldWeights({}), module=lambda: peft_model(folder / "model", None)
        )

    for source, said in (
        (damaged("prefix", num_virtual_tokens=9), r"prompt_embeddings of shape \(9, 128\), found of shape \(5, 128\)"),
        (damaged("prefix", num_layers=None), "must give num_layers"),
        (damaged("prefix", num_attention_heads=3), "token_dim 32 is not 3 heads"),
        (
            damaged("prompt", {"prompt_embeddings": np.ones((7, 9), np.float32)}),
            "have 9 numbers, tokens of this base 64",
        ),
        (damaged("prompt", {"score.weight": np.ones(3, np.float32)}), r"also saved score\.weight"),
        (damaged("prompt", {"prompt_embeddings": np.full((7, 64), np.nan, np.float32)}), "NaN"),
        (
            f"{damaged('multitask', {'prefix_task_rows': np.ones((3, 4, 64), np.float32)})}#task=0",
            r"fit each other and task 0, found .*\(3, 4, 64\)",
        ),
    ):
        with pytest.raises(AdapterError, match=said):
            read(source)


def test_another_base_and_states_that_fill_the_context(folder: Path, tmp_path: Path) -> None:
    deep = build_causal(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(AdapterMismatchError, match=r"2 layers of 2 heads .*at prefix\.2\.(key|value) it has nothing"):
        export(deep, {"a": folder / "prefix"}, tmp_path / "b", force=True)
    short = build_causal(tmp_path / "short", max_position_embeddings=5)
    with pytest.raises(AdapterMismatchError, match="context of this base is 5 tokens, which leaves no place"):
        export(short, {"a": folder / "prefix"}, tmp_path / "b", force=True)


def test_a_file_with_a_layer_missing(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", copy)
    manifest = json.loads((copy / "edgepeft.json").read_text())
    del manifest["adapters"]["prefix"]["tensors"]["prefix.1.value"]
    (copy / "edgepeft.json").write_text(json.dumps(manifest))
    with pytest.raises(AdapterMismatchError, match=r"5 states before the sequence, at prefix\.1\.value it has none"):
        runtime.open(copy)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_other_architectures(architecture: str, tmp_path: Path) -> None:
    """Learned positions, position ids given, caches that grow by concatenation."""
    from transformers import AutoTokenizer

    source = build_other(tmp_path / "model", architecture)
    for name in ("prefix", "prompt"):
        save_virtual(tmp_path / name, source, name)
    export(source, {name: tmp_path / name for name in ("prefix", "prompt")}, tmp_path / "bundle")
    own, tokenizer = runtime.open(tmp_path / "bundle", threads=1), AutoTokenizer.from_pretrained(source)
    for name in ("prefix", "prompt"):
        module = peft_model(source, tmp_path / name)
        wanted = [greedy(module, tokenizer(prompt).input_ids, 20) for prompt in PROMPTS]
        assert tokens(own.use(name).generate(PROMPTS, **RAW)) == wanted


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_sliding_windows_are_refused(architecture: str, tmp_path: Path) -> None:
    source = build_other(tmp_path / "model", architecture)
    for name in ("prefix", "prompt"):
        save_virtual(tmp_path / name, source, name)
        with pytest.raises(UnsupportedAdapterError, match="layers of sliding_attention, which forget its beginning"):
            export(source, {name: tmp_path / name}, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
