"""Causal LMs given as ONNX files: other tools' layouts, weights quantized already, and files that do not belong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import causal_models
import numpy as np
import onnx_ir as ir
import pytest
from causal import ADAPTERS, build_causal
from conftest import save_lora

from edgepeft import runtime as runtimes
from edgepeft.base.capture import capture
from edgepeft.base.load import load_model
from edgepeft.base.parity import TOLERANCE
from edgepeft.base.routes.given import read_graph
from edgepeft.bundle import SlotTable
from edgepeft.errors import BundleError, CaptureError, ParityError, SiteError
from edgepeft.graph.locate.by_rounded_content import locate_quantized
from edgepeft.graph.quantized_weights import quantized_weights
from edgepeft.pipeline import add, export, quantize
from edgepeft.quantize.q4 import q4
from edgepeft.validate import validate

Make = Callable[[str], Path]

# PEFT 0.21 says so of every adapter on a tied head; that it comes out right is what is tested.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied Llama, and adapters at every linear site, at q and v, and at the head."""
    root = tmp_path_factory.mktemp("given")
    folder = build_causal(root / "model")
    made = {"model": folder}
    head = {"r": 2, "target_modules": ["lm_head", "o_proj"], "seed": 4}
    for name, options in {**ADAPTERS, "head": head}.items():
        made[name] = save_lora(
            root / name, folder, task="text-generation", task_type="CAUSAL_LM", scale=0.25, **options
        )
    return made


def _save(graph: ir.Model, path: Path, *, plain: bool = True) -> Path:
    """Save a graph as another tool would have: initializers under other names, without ``logits_from``."""
    graph = graph.clone()
    for number, value in enumerate(list(graph.graph.initializers.values())):
        if value.name != "logits_from":
            value.name = f"numbers.{number}"
    if plain and "logits_from" in graph.graph.initializers:
        node = next(n for n in graph.graph if n.name == "logits_from/Slice")
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        graph.graph.remove(node, safe=True)
        graph.graph.inputs.remove(graph.graph.initializers.pop("logits_from"))
    ir.save(graph, path)
    return path


@pytest.fixture(scope="module")
def files(model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """ONNX files of the model, made once each: ``fused`` and ``positions`` (traced) in fp32; ``q4``, ``q4-asymmetric`` and
    ``q8-asymmetric``; ``builder-fp32`` and ``builder-int4`` by onnxruntime-genai's builder."""
    root = tmp_path_factory.mktemp("files")
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name in made:
            return made[name]
        path = root / f"{name}.onnx"
        if name.startswith("builder-"):
            made[name] = _builder(model["model"], root / name, name.removeprefix("builder-"))
        elif name == "fused":
            made[name] = _save(capture(model["model"], task="text-generation").graph, path)
        elif name == "positions":
            from edgepeft.base.routes.traced_causal import trace_causal

            made[name] = _save(trace_causal(load_model(model["model"], task="text-generation")).graph, path)
        elif name == "q4":
            q4(make("fused"), path, SlotTable())
            made[name] = path
        else:
            made[name] = _asymmetric(make("fused"), path, int(name[1]))
        return made[name]

    return make


def _asymmetric(source: Path, path: Path, bits: int) -> Path:
    """Quantized by ONNX Runtime's own tool with zero points, computing in float32; the tied head and the table apart."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    settings = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, bits=bits)
    tool = MatMulNBitsQuantizer(onnx.load(source), algo_config=settings)
    tool.process()
    onnx.save(tool.model.model, path)
    return path


def _builder(model: Path, folder: Path, precision: str) -> Path:
    pytest.importorskip("onnxruntime_genai.models.builder")
    extra = ["int4_accuracy_level=4", "int4_block_size=32", "shared_embeddings=true"] if precision == "int4" else []
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(model), "-i", str(model)]
    command += ["-o", str(folder), "-p", precision, "-e", "cpu", "-c", str(folder / "cache")]
    command += ["--extra_options", *extra] if extra else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "model.onnx"


FLOAT = ["fused", "positions", "builder-fp32"]
QUANTIZED = {"q4": "q4", "q4-asymmetric": "q4", "q8-asymmetric": "int8", "builder-int4": "q4"}


@pytest.mark.parametrize("name", FLOAT)
def test_a_float_file_takes_slots(name: str, model: dict[str, Path], files: Make, tmp_path: Path) -> None:
    """transformers.js' layout without and with position_ids, and the builder's: matched by content, PEFT's logits."""
    told: list[str] = []
    adapters = {"wide": model["wide"], "head": model["head"]}
    result = export(model["model"], adapters, tmp_path / "b", onnx=files(name), announce=told.append)
    manifest = result.bundles[0].manifest
    assert manifest.base.captured_by == "existing"
    assert list(manifest.variants) == ["fp32"]
    assert manifest.provenance["matched"] == {"content": 20}  # every parameter of two layers
    assert any("20 by content" in message for message in told)
    assert result.capture_parity <= TOLERANCE
    assert all(p.changes_output and p.max_difference <= TOLERANCE for p in result.parity)
    inputs = {value.name for value in manifest.inputs}
    assert "logits_from" in inputs
    assert ("position_ids" in inputs) == (name == "positions")
    shapes = {value.name: value.shape for value in manifest.inputs}
    assert shapes["past_key_values.1.value"] == ("batch_size", 2, "past_sequence_length", 16)


@pytest.mark.parametrize(("name", "variant"), QUANTIZED.items())
def test_a_quantized_file_takes_slots(
    name: str, variant: str, model: dict[str, Path], files: Make, tmp_path: Path
) -> None:
    """Without an adapter the file's own bits (export refuses otherwise); with one, PEFT over the rounded numbers.

    Adapters at packed q/k/v and at the tied head, whose table and MatMul hold one set of blocks or one each.
    """
    told: list[str] = []
    adapters = {"wide": model["wide"], "head": model["head"]}
    result = export(model["model"], adapters, tmp_path / "b", onnx=files(name), announce=told.append)
    bundle = result.bundles[0]
    assert list(bundle.manifest.variants) == [variant]
    assert (tmp_path / "b" / "onnx" / f"model_{variant}.onnx").is_file()
    entry = bundle.manifest.variants[variant]
    assert entry.quantized_share > 0.7
    assert bundle.manifest.provenance["matched"]["rounded content"] >= 14
    assert any("by rounded content" in message for message in told)
    assert all(p.changes_output and p.max_difference <= TOLERANCE for p in result.parity)
    graph = ir.load(bundle.file(entry.file))
    given = ir.load(files(name))
    assert [n.op_type for n in graph.graph].count("MatMulNBits") == [n.op_type for n in given.graph].count(
        "MatMulNBits"
    )
    # The whole bundle again, from its own files; and an adapter that is added later.
    add(tmp_path / "b", "narrow", model["narrow"])
    checked = validate(tmp_path / "b")
    assert checked.passed, checked.problems
    assert {p.adapter for p in checked.parity} == {"wide", "head", "narrow"}
    assert checked.base_restored is True
    with pytest.raises(BundleError, match="has no fp32 variant to quantize, only"):
        quantize(tmp_path / "b", "q4" if variant != "q4" else "int8")


def test_generation_from_a_quantized_file(model: dict[str, Path], files: Make, tmp_path: Path) -> None:
    export(model["model"], {"wide": model["wide"]}, tmp_path / "b", onnx=files("q4"))
    runtime = runtimes.open(tmp_path / "b", threads=1)
    assert runtime.variant == "q4"
    first = runtime.use("wide").generate("the film was", chat=False, max_new_tokens=8)
    plain = runtime.use(None).generate("the film was", chat=False, max_new_tokens=8)
    assert list(first.tokens) != list(plain.tokens)
    assert list(runtime.use("wide").generate("the film was", chat=False, max_new_tokens=8).tokens) == list(first.tokens)


def test_a_quantized_file_with_slots_opens_in_genai(model: dict[str, Path], files: Make, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    export(model["model"], {"wide": model["wide"]}, tmp_path / "b", onnx=files("q4"))
    theirs, ours = genai.Model(str(tmp_path / "b")), runtimes.open(tmp_path / "b", threads=1)
    adapters = genai.Adapters(theirs)
    adapters.load(str(tmp_path / "b" / "adapters" / "wide.onnx_adapter"), "wide")
    prompt = ours.generator.tokens.encode("the film was", special=True)
    for name in ("wide", None):
        params = genai.GeneratorParams(theirs)
        params.set_search_options(max_length=len(prompt) + 12, do_sample=False)
        generator = genai.Generator(theirs, params)
        if name is not None:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        found = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
        assert found == list(ours.use(name).generate("the film was", chat=False, max_new_tokens=12).tokens)


#: Architectures whose quantized weights lie otherwise than the checkpoint's, or have biases that kernels add: targets by name.
LAID_OUT: dict[str, dict[str, Any]] = {
    "qwen2": {"target_modules": ["q_proj", "v_proj", "up_proj"]},
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "starcoder2": {"target_modules": ["q_proj", "c_fc", "c_proj"]},
    "gpt-neox": {"target_modules": ["query_key_value", "dense", "dense_h_to_4h"]},
    "mixtral": {
        "target_modules": ["v_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
    },
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_quantized_files_of_other_layouts(name: str, tmp_path: Path) -> None:
    """Rows of heads in another order, experts with gate and up apart, biases inside kernels: told by their rows.

    The bundle without an adapter gives the file's bits (checked at export), and validation reads it once more.
    """
    folder = causal_models.build_causal(tmp_path / "model", name, num_hidden_layers=2)
    options: dict[str, Any] = {"task": "text-generation", "task_type": "CAUSAL_LM", **LAID_OUT[name]}
    lora, late = (save_lora(tmp_path / f"lora{seed}", folder, seed=seed, **options) for seed in (1, 2))
    ir.save(capture(folder, task="text-generation").graph, tmp_path / "fp32.onnx")
    q4(tmp_path / "fp32.onnx", tmp_path / "q4.onnx", SlotTable())
    result = export(folder, {"a": lora}, tmp_path / "b", task="text-generation", onnx=tmp_path / "q4.onnx")
    assert result.parity[0].changes_output
    assert result.parity[0].max_difference <= TOLERANCE
    add(tmp_path / "b", "late", late)
    checked = validate(tmp_path / "b")
    assert checked.passed, checked.problems
    assert {p.adapter for p in checked.parity} == {"a", "late"}


def test_merging_into_few_bits_is_refused(model: dict[str, Path], files: Make, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="round the adapter away"):
        export(model["model"], {"wide": model["wide"]}, tmp_path / "b", onnx=files("q4"), mode="merge")


@pytest.mark.parametrize("name", ["fused", "q4"])
def test_another_checkpoints_file(name: str, files: Make, tmp_path: Path) -> None:
    other = build_causal(tmp_path / "other", seed=7)
    with pytest.raises(CaptureError, match="does not hold the weights of"):
        capture(other, task="text-generation", onnx=files(name))


def test_the_same_weights_computed_otherwise(model: dict[str, Path], files: Make, tmp_path: Path) -> None:
    """Every weight is found, but attention is scaled otherwise: only running it tells."""
    graph = read_graph(files("q4"))
    for node in graph.graph:
        if node.op_type == "GroupQueryAttention":
            node.attributes["scale"] = ir.AttrFloat32("scale", 0.3)
    ir.save(graph, tmp_path / "scaled.onnx")
    with pytest.raises(CaptureError, match="logits differ from PyTorch by"):
        capture(model["model"], task="text-generation", onnx=tmp_path / "scaled.onnx")


def _without_cache(graph: ir.Model) -> None:
    kept = [v for v in graph.graph.inputs if not (v.name or "").startswith("past_key_values")]
    graph.graph.inputs.clear()
    graph.graph.inputs.extend(kept)


def _merged(graph: ir.Model) -> None:
    graph.graph.inputs.append(ir.Value(name="use_cache_branch", type=ir.TensorType(ir.DataType.BOOL)))


def _half(graph: ir.Model) -> None:
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.FLOAT16)


def _fewer_layers(graph: ir.Model) -> None:
    kept = [v for v in graph.graph.inputs if not (v.name or "").startswith("past_key_values.1.")]
    graph.graph.inputs.clear()
    graph.graph.inputs.extend(kept)


def _other_inputs(graph: ir.Model) -> None:
    graph.graph.inputs.append(ir.Value(name="pixel_values", type=ir.TensorType(ir.DataType.FLOAT)))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_without_cache, "it was exported without a cache"),
        (_merged, "merged decoder .*decoder_with_past_model.onnx"),
        (_half, "float16 is not"),
        (_fewer_layers, "caches for 1 layers, the model has 2"),
        (_other_inputs, "pixel_values"),
    ],
)
def test_files_that_do_not_fit(
    edit: Callable[[ir.Model], None], says: str, model: dict[str, Path], files: Make, tmp_path: Path
) -> None:
    graph = ir.load(files("fused"))
    edit(graph)
    ir.save(graph, tmp_path / "edited.onnx")
    with pytest.raises(CaptureError, match=says):
        capture(model["model"], task="text-generation", onnx=tmp_path / "edited.onnx")


def test_no_file_and_no_model(model: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no ONNX file at"):
        capture(model["model"], task="text-generation", onnx=tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(CaptureError, match="not a readable ONNX model"):
        capture(model["model"], task="text-generation", onnx=tmp_path / "text.onnx")


class TestMatching:
    """Finding parameters among weights in blocks, on a graph of one packed MatMulNBits and one more."""

    @pytest.mark.parametrize("name", ["q4", "q4-asymmetric", "q8-asymmetric"])
    def test_numbers_are_read_as_the_kernel_reads_them(self, name: str, files: Make) -> None:
        import onnxruntime as ort

        graph = ir.load(files(name))
        nodes = [node for node in graph.graph if node.op_type == "MatMulNBits"]
        weights = quantized_weights(graph)
        for node in nodes[:3]:
            weight = weights[node.inputs[1].name or ""]  # type: ignore[union-attr]
            x = ir.Value(
                name="x", shape=ir.Shape([weight.columns, weight.columns]), type=ir.TensorType(ir.DataType.FLOAT)
            )
            inputs = [
                None if v is None else ir.Value(name=v.name, const_value=ir.tensor(v.const_value.numpy(), name=v.name))
                for v in node.inputs[1:]
            ]
            attributes = {**node.attributes, "accuracy_level": ir.AttrInt64("accuracy_level", 1)}
            new = ir.Node("com.microsoft", "MatMulNBits", [x, *inputs], attributes=list(attributes.values()))
            new.outputs[0].name, new.outputs[0].type = "y", x.type
            alone = ir.Graph(
                [x], [new.outputs[0]], nodes=[new], initializers=[v for v in inputs if v is not None],
                opset_imports={"": 20, "com.microsoft": 1},
            )  # fmt: skip
            text = ir.to_proto(ir.Model(alone, ir_version=10)).SerializeToString()
            session = ort.InferenceSession(text, providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {"x": np.eye(weight.columns, dtype=np.float32)})
            np.testing.assert_allclose(found.T, weight.read(), atol=1e-6)

    def parameters(self, files: Make) -> tuple[ir.Model, dict[str, np.ndarray]]:
        graph = ir.load(files("q4"))
        rng = np.random.default_rng(0)
        found = {}
        for weight in quantized_weights(graph).values():
            whole = weight.read()
            whole = whole + 0.1 * whole.std() * rng.standard_normal(whole.shape).astype(np.float32)
            found.update({f"{weight.name}.{i}": part for i, part in enumerate(np.array_split(whole, 2))})
        return graph, found

    def test_blocks_of_rows_are_told_by_rounded_content(self, files: Make) -> None:
        graph, parameters = self.parameters(files)
        match = locate_quantized(graph, parameters)
        for name, array in parameters.items():
            (place,) = match.locations[name]
            assert place.initializer == name.rpartition(".")[0]
            assert (place.offset, place.size) == (
                0 if name.endswith(".0") else len(parameters[name[:-1] + "0"]),
                len(array),
            )
            assert match.how[name] == "rounded content"
            assert match.errors[name] < 0.2

    def test_another_weight_is_not_near(self, files: Make) -> None:
        graph, parameters = self.parameters(files)
        rng = np.random.default_rng(1)
        others = {name: rng.standard_normal(a.shape).astype(np.float32) * a.std() for name, a in parameters.items()}
        assert locate_quantized(graph, others).locations == {}

    def test_a_weight_that_content_does_not_tell_is_told_by_name(self, files: Make) -> None:
        graph, parameters = self.parameters(files)
        for number, name in enumerate(quantized_weights(graph)):
            graph.graph.initializers[name].name = f"model.layers.{number}.attn.o_proj.MatMul.weight_Q4"
        names = list(quantized_weights(graph))
        old = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
        spelt: dict[str, Any] = {n: a for n, a in parameters.items() if n.rpartition(".")[0] != old[1]}
        shape = quantized_weights(graph)[names[1]].read().shape
        lost = "model.layers.1.self_attn.o_proj.weight"
        match = locate_quantized(graph, {**spelt, lost: np.random.default_rng(2).standard_normal(shape)})
        assert match.how[lost] == "name"
        assert match.locations[lost][0].initializer == names[1]


def test_the_bundle_must_give_the_files_bits(model: dict[str, Path], files: Make, tmp_path: Path) -> None:
    from edgepeft.bundle import read_bundle
    from edgepeft.validate.quantized_base import check_given

    export(model["model"], {"wide": model["wide"]}, tmp_path / "b", onnx=files("q4"))
    check_given(read_bundle(tmp_path / "b"), files("q4"))
    with pytest.raises(ParityError, match="must give the same bits"):
        check_given(read_bundle(tmp_path / "b"), files("q4-asymmetric"))
