"""Causal language models: captured right, slotted without losing a fusion, quantized with slots untouched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from causal_models import CAUSAL, build_causal, unchanged
from conftest import save_lora

from edgepeft import runtime as runtimes
from edgepeft.base.base import Base
from edgepeft.base.capture import capture
from edgepeft.base.parity import TOLERANCE
from edgepeft.base.parity_causal import causal_batches, causal_difference, reference_causal, run_causal
from edgepeft.errors import AdapterMismatchError, InputError, ParityError, SiteError
from edgepeft.graph.edit_base import add_slots
from edgepeft.graph.run import open_graph
from edgepeft.pipeline import export, quantize
from edgepeft.quantize.q4 import quantize_blocks
from edgepeft.validate.probe import bundle_probe

Make = Callable[..., Path]

# PEFT 0.21 says so of every adapter on a tied head; that it comes out right is what is tested.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``folder_of(name)``: a tiny random causal LM, written once a session."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = build_causal(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def base_of(folder_of: Make) -> Callable[[str], Base]:
    """``base_of(name)``: its captured base."""
    made: dict[str, Base] = {}

    def get(name: str) -> Base:
        if name not in made:
            made[name] = capture(folder_of(name), task="text-generation")
        return made[name]

    return get


def operators(graph: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph)


#: Weights that mobius lays out anew (rows dropped), so that content does not find them.
RELAID = {"opt": "embed_positions"}


@pytest.mark.parametrize("name", CAUSAL)
def test_every_architecture_is_captured_right(name: str, base_of: Callable[[str], Base]) -> None:
    base = base_of(name)
    assert base.captured_by == "mobius"
    assert base.parity <= TOLERANCE
    ops = operators(base.graph)
    assert ops["GroupQueryAttention"] == 3
    assert ops["SkipSimplifiedLayerNormalization"] + ops["SkipLayerNormalization"] >= (3 if name == "gpt-neox" else 1)
    lost = [
        n for n, w in base.weights.items() if w.ndim == 2 and not base.locations[n] and RELAID.get(name, "–") not in n
    ]
    assert lost == []
    # Declared for old runtimes, and named as Optimum and transformers.js do.
    assert base.graph.graph.opset_imports[""] == 20
    shapes = {v.name: [d if isinstance(d, int) else d.value for d in v.shape] for v in base.graph.graph.inputs}
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["past_key_values.0.key"][0::2] == ["batch_size", "past_sequence_length"]


@pytest.mark.parametrize("name", ["qwen2", "gpt-neox", "phi3", "starcoder2", "mixtral"])
def test_markers_do_not_stay(name: str, tmp_path: Path) -> None:
    """Zero biases and unit norms, as a fresh model has them, are marked while it is built; none may stay in the graph."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = build_causal(tmp_path / "m", name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if parameter.mean().abs() < 0.5 else 1.0)
    model.save_pretrained(folder)
    base = capture(folder, task="text-generation")
    batch = causal_batches(vocab=99, pad_id=0)[1]
    shapes = {
        v.name or "": [d if isinstance(d, int) else str(d.value) for d in v.shape or ()]
        for v in base.graph.graph.inputs
    }
    with open_graph(base.graph) as step:
        found = run_causal(step, shapes, batch)
    assert causal_difference(found, reference_causal(model.eval(), batch), batch.mask) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("gemma3", "RestoreLayerAttention"),
        ("gemma3", "RestoreEmbeddingScale"),
        ("gemma2", "RestoreLayerAttention"),
        ("opt", "RestoreEpsilon"),
    ],
)
def test_each_fix_is_needed(name: str, fix: str, folder_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it parity fails: a fix that mobius no longer needs shows here, and so does a check that sees nothing."""
    from edgepeft.base.load import load_model
    from edgepeft.base.routes import mobius

    monkeypatch.setattr(f"edgepeft.base.routes.mobius_fixes.{fix}.call", unchanged)
    with pytest.raises(ParityError, match="differ from PyTorch"):
        mobius.build(load_model(folder_of(name)))


def test_logits_of_the_last_positions_only(base_of: Callable[[str], Base]) -> None:
    base = base_of("llama")
    batch = causal_batches(vocab=99, pad_id=0)[2]
    feeds = {"input_ids": batch.ids, "attention_mask": batch.mask}
    feeds |= {
        f"past_key_values.{i}.{kv}": np.zeros((1, 2, 0, 16), np.float32) for i in range(3) for kv in ("key", "value")
    }
    with open_graph(base.graph) as step:
        whole = step(feeds)["logits"]
        last = step({**feeds, "logits_from": np.array([-1], np.int64)})["logits"]
        two = step({**feeds, "logits_from": np.array([whole.shape[1] - 2], np.int64)})["logits"]
    assert last.shape == (1, 1, 99)
    np.testing.assert_allclose(last, whole[:, -1:], atol=1e-6)  # the same sums over fewer rows at once
    np.testing.assert_allclose(two, whole[:, -2:], atol=1e-6)


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def llama(folder_of: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied Llama, adapters at all sites, at q and v alone, and at the head; and its bundle."""
    root = tmp_path_factory.mktemp("llama-adapters")
    model = folder_of("llama")
    options: dict[str, Any] = {"task": "text-generation", "task_type": "CAUSAL_LM"}
    folders = {
        "all": save_lora(root / "all", model, seed=1, r=3, target_modules=ALL, use_rslora=True, **options),
        "qv": save_lora(root / "qv", model, seed=2, r=2, target_modules=["q_proj", "v_proj"], **options),
        "head": save_lora(root / "head", model, seed=3, r=2, target_modules=["o_proj", "lm_head"], **options),
    }
    export(model, folders, root / "bundle", task="text-generation")
    return {**folders, "bundle": root / "bundle", "model": model}


def test_slots_keep_every_fusion(llama: dict[str, Path], base_of: Callable[[str], Base]) -> None:
    base = base_of("llama")
    bundle = runtimes.open(llama["bundle"]).bundle
    slots = bundle.manifest.slots.linear
    assert [p.site for p in slots[0].parts] == [f"model.layers.0.self_attn.{p}_proj" for p in "qkv"]
    assert len(slots) == 3 * 5 + 1  # packed q/k/v, o, gate, up, down in each layer; the head
    graph = ir.load(bundle.file("onnx/model.onnx"))
    assert len(graph.graph) == len(base.graph.graph) + 3 * len(slots)
    before, after = operators(base.graph), operators(graph)
    for op in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization"):
        assert after[op] == before[op]
    # The embedding and the tied head are one tensor, and the file is hardly larger than its parameters.
    assert bundle.file("onnx/model.onnx_data").stat().st_size <= 4 * base.parameters * 1.05 + 64 * 32 * 2 * 4 + 8192


def test_adapters_equal_peft_and_the_base_comes_back(llama: dict[str, Path]) -> None:
    from edgepeft.validate import validate

    result = validate(llama["bundle"])
    assert result.passed, result.problems
    assert {p.adapter for p in result.parity} == {"all", "qv", "head"}
    assert all(p.changes_output for p in result.parity)
    assert result.base_restored is True


@pytest.mark.parametrize("name", ["all", "head"])
def test_merged_equals_peft(name: str, llama: dict[str, Path], tmp_path: Path) -> None:
    """PEFT's own merge of a tied head is wrong (it changes the embedding too); ours gives the head weights of its own."""
    result = export(llama["model"], {name: llama[name]}, tmp_path / "m", mode="merge", task="text-generation")
    assert result.parity[0].max_difference <= TOLERANCE


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma3", "phi3", "gpt2", "gpt-neox", "mixtral", "starcoder2"])
def test_adapters_on_other_architectures(name: str, folder_of: Make, tmp_path: Path) -> None:
    targets = {
        "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
        "gpt2": ["c_attn", "c_proj", "c_fc"],
        "gpt-neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        "starcoder2": ["q_proj", "c_fc", "c_proj"],
    }.get(name, ["q_proj", "v_proj", "o_proj"])
    extra = {"fan_in_fan_out": True} if name == "gpt2" else {}
    lora = save_lora(
        tmp_path / "lora",
        folder_of(name),
        task="text-generation",
        task_type="CAUSAL_LM",
        target_modules=targets,
        **extra,
    )
    result = export(folder_of(name), {"a": lora}, tmp_path / "b", task="text-generation")
    assert result.parity[0].changes_output
    assert result.parity[0].max_difference <= TOLERANCE


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}], ids=["dora", "bias"])
def test_rows_in_another_order(
    options: dict[str, Any], folder_of: Make, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    """GPT-NeoX keeps q, k and v of a head together, mobius those of all heads: gains and biases follow their rows."""
    base = base_of("gpt-neox")
    name = "gpt_neox.layers.1.attention.query_key_value"
    places = base.locations[f"{name}.weight"]
    first = [(0, 64, 0), (64, 64, 192), (128, 64, 384), (192, 64, 576), (256, 64, 64)]
    assert [(p.offset, p.size, p.start) for p in places[:5]] == first
    assert [(p.offset, p.start) for p in base.locations[f"{name}.bias"]] == [(p.offset, p.start) for p in places]
    lora = save_lora(
        tmp_path / "lora", folder_of("gpt-neox"), task="text-generation", task_type="CAUSAL_LM",
        target_modules=["query_key_value"], **options,
    )  # fmt: skip
    merged = export(folder_of("gpt-neox"), {"a": lora}, tmp_path / "m", mode="merge", task="text-generation")
    assert merged.parity[0].max_difference <= TOLERANCE
    if "bias" in options:
        with pytest.raises(SiteError, match=r"query_key_value\.bias is spread over the graph .* --mode merge"):
            export(folder_of("gpt-neox"), {"a": lora}, tmp_path / "b", task="text-generation")
        return
    swapped = export(folder_of("gpt-neox"), {"a": lora}, tmp_path / "b", task="text-generation")
    assert swapped.parity[0].changes_output
    assert swapped.parity[0].max_difference <= TOLERANCE


def test_a_shorter_context_has_shorter_tables(folder_of: Make) -> None:
    base = capture(folder_of("llama"), task="text-generation", max_length=24)
    assert base.max_length == 24
    tables = [v.const_value.shape for n, v in base.graph.graph.initializers.items() if n.endswith(".cos")]
    assert [tuple(shape) for shape in tables] == [(24, 8)]
    with pytest.raises(InputError, match="has a context of 64 tokens"):
        capture(folder_of("llama"), task="text-generation", max_length=65)


@pytest.mark.parametrize("key", ["model.embed_tokens", "lm_head.modules_to_save"])
def test_a_resized_vocabulary_is_refused_with_both_sizes(key: str, folder_of: Make, tmp_path: Path) -> None:
    """The embedding that PEFT saves of itself, and a head trained as a whole."""
    model = folder_of("llama")
    options: dict[str, Any] = {"task": "text-generation", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    if "modules_to_save" in key:
        options["modules_to_save"] = ["lm_head"]
    lora = save_lora(tmp_path / "lora", model, **options)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(lora / "adapter_model.safetensors")
    tensors[f"base_model.model.{key}.weight"] = np.ones((103, 64), np.float32)
    save_file(tensors, lora / "adapter_model.safetensors")
    with pytest.raises(AdapterMismatchError, match=r"resized from 99 to 103 tokens\. Resize the base"):
        export(model, {"a": lora}, tmp_path / "b", task="text-generation")
    assert not (tmp_path / "b").exists()


def test_slots_reserved_for_adapters_to_come(base_of: Callable[[str], Base]) -> None:
    base = base_of("llama")
    slotted = add_slots(base, reserve="all-linear")
    sites = {part.site for slot in slotted.table.linear for part in slot.parts}
    assert len(sites) == 3 * 7
    assert "lm_head" not in sites  # a vocabulary of work in every token; PEFT's all-linear leaves it out too
    batch = causal_batches(vocab=99, pad_id=0)[1]
    shapes = {
        v.name or "": [d if isinstance(d, int) else str(d.value) for d in v.shape or ()]
        for v in base.graph.graph.inputs
    }
    with open_graph(base.graph) as plain, open_graph(slotted.graph) as empty:
        one, other = run_causal(plain, shapes, batch), run_causal(empty, shapes, batch)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert causal_difference(one, reference_causal(base.reference, batch), batch.mask) <= TOLERANCE


@pytest.fixture(scope="module")
def rounded(llama: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("q4") / "bundle"
    export(llama["model"], {"all": llama["all"]}, out, task="text-generation")
    quantize(out, "q4")
    return out


def test_q4_blocks_round_as_onnx_runtime_does() -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig as Config
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantizer

    weight = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float32)  # [in, out]
    theirs = DefaultWeightOnlyQuantizer(Config(block_size=32, is_symmetric=True)).qbits_block_quant(weight)
    packed, scales = quantize_blocks(np.ascontiguousarray(weight.T))
    np.testing.assert_array_equal(packed, theirs[0])
    np.testing.assert_allclose(scales, theirs[1].reshape(scales.shape), rtol=1e-6)


def test_q4_head_and_embedding_are_stored_once(rounded: Path) -> None:
    graph = ir.load(rounded / "onnx" / "model_q4.onnx")
    ops = operators(graph)
    assert ops["GatherBlockQuantized"] == 1
    assert ops["MatMulNBits"] == 3 * 5 + 1
    tables = [n for n in graph.graph.initializers if "embed_tokens" in n]
    assert sorted(tables) == ["model.embed_tokens.weight_q4", "model.embed_tokens.weight_scales"]
    manifest = runtimes.open(rounded).manifest
    assert manifest.variants["q4"].quantized_share > 0.95


def test_q4_what_runs_is_what_was_rounded(rounded: Path, llama: dict[str, Path]) -> None:
    """The variant against PyTorch whose weights were rounded the same way: only int8 activations differ."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama["model"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                packed, scales = quantize_blocks(parameter.numpy())
                low, high = packed & 15, packed >> 4
                numbers = np.stack([low, high], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32) - 8
                whole = (numbers * scales[:, :, None]).reshape(len(numbers), -1)[:, : parameter.shape[1]]
                parameter.copy_(torch.from_numpy(whole))
    runtime = runtimes.open(rounded, variant="q4")
    probe = bundle_probe(runtime.bundle)
    found, expected = probe.run(runtime), probe.reference(model.eval())
    # int8 activations: 1/254 of the largest in a block each, random in sign over 48 to 64 numbers and 15 layers.
    assert probe.difference(found, expected) < 0.05
    original = AutoModelForCausalLM.from_pretrained(llama["model"]).eval()
    assert probe.difference(found, probe.reference(original)) > 0.05  # and it is not the unrounded model


def test_q4_adapters_serve_it_and_the_base_comes_back(rounded: Path) -> None:
    runtime = runtimes.open(rounded, variant="q4")
    probe = bundle_probe(runtime.bundle)
    plain = probe.run(runtime)
    edited = probe.run(runtime.use("all"))
    again = probe.run(runtime.use(None))
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(plain, again, strict=True) for k in a)
    assert any(not np.array_equal(a[k], b[k]) for a, b in zip(plain, edited, strict=True) for k in a)


@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen3", "gemma3", "phi3", "gpt-neox"])
def test_rotary_tables_are_those_of_pytorch(name: str, tmp_path: Path) -> None:
    """PyTorch's cosines are computed in float32, 2e-4 from the exact ones at position 8,191: exact ones are another model's."""
    import torch

    from edgepeft.base.load import load_model
    from edgepeft.base.routes.mobius_fixes.attention import attention_nodes

    folder = build_causal(tmp_path / "long", name, max_position_embeddings=8192)
    base = capture(folder, task="text-generation", max_length=8192)
    assert base.captured_by == "mobius"
    model = load_model(folder).model
    rotary = next(module for path, module in model.named_modules() if path.endswith("rotary_emb"))
    kinds = getattr(model.config, "layer_types", None)
    by_type = "full_attention" in (model.config.rope_parameters or {})
    rotated = 0
    for layer, node in attention_nodes(base.graph).items():
        if not node.attributes.get_int("do_rotary", 0):
            continue
        rotated += 1
        expected = rotary(
            torch.zeros(1, 1), torch.tensor([[0, 5, 8191]]), *([kinds[layer]] if by_type and kinds else [])
        )
        for index, table in zip((7, 8), expected, strict=True):
            mine = node.inputs[index].const_value.numpy()
            assert len(mine) >= 8192
            assert np.array_equal(mine[[0, 5, 8191]], table[0, :, : mine.shape[1]].detach().numpy())
    assert rotated
