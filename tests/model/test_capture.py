"""Capture: every architecture and task, through the public function, against PyTorch.

Reference: the Hugging Face model in fp32 on the CPU, loaded afresh. Tolerance: 1e-4 on outputs of magnitude about 1;
another order of summation costs about 1e-7 a layer, while one dropped bias, mask or norm costs more than 1e-2.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import ARCHITECTURES, Bases, Models, build_model, ragged, save_lora

import edgepeft.base.capture as capture_module
from edgepeft.errors import CaptureError, InputError, ParityError
from edgepeft.graph.run import run_graph
from edgepeft.pipeline import add_slots, capture, read_adapter

TOLERANCE = 1e-4
TASKED = [(name, "text-classification") for name in ARCHITECTURES if name != "deberta"] + [
    ("bert", "token-classification"),
    ("electra", "token-classification"),
    ("bert", "feature-extraction"),
    ("bert", "fill-mask"),
    ("roberta", "fill-mask"),
]


def reference(folder: Path, task: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a freshly loaded PyTorch model computes, each row by itself and without padding: no mask can hide a fault."""
    import torch
    from optimum.exporters.tasks import TasksManager

    model = TasksManager.get_model_class_for_task(task).from_pretrained(folder, dtype=torch.float32).eval()
    rows: list[dict[str, np.ndarray]] = []
    for row in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][row].sum())
        with torch.no_grad():
            found = model(**{k: torch.from_numpy(v[row : row + 1, :length]) for k, v in batch.items()})
        rows.append({name: value[0].numpy() for name, value in found.items() if hasattr(value, "numpy")})
    return {name: [row[name] for row in rows] for name in rows[0]}  # type: ignore[return-value]


def compare(base: Any, folder: Path, batch: dict[str, np.ndarray]) -> float:
    mine = run_graph(base.graph, [batch])[0]
    theirs = reference(folder, base.task, batch)
    worst = 0.0
    for name, array in mine.items():
        for row, expected in zip(array, theirs[name], strict=True):
            row = row[: len(expected)] if expected.ndim == 2 else row
            worst = max(worst, float(np.abs(row - expected).max()))
    return worst


@pytest.mark.parametrize(("architecture", "task"), TASKED)
def test_every_base_computes_what_pytorch_does(architecture: str, task: str, models: Models, bases: Bases) -> None:
    folder, base = models(architecture, task), bases(architecture, task)
    # Traced at 2 x 8. Other sizes, one token, one row, padding, and no padding at all.
    batches = ragged(base, ((3, 11), (1, 1), (1, 30), (4, 6)))
    full = {name: array.copy() for name, array in batches[0].items()}
    full["attention_mask"][:] = 1
    for batch in (*batches, full):
        assert compare(base, folder, batch) <= TOLERANCE
    assert base.parity <= TOLERANCE
    assert base.fresh == ()
    assert not [name for name, places in base.locations.items() if not places], "parameters that were not found"
    for value in base.graph.graph.inputs:
        assert [str(dim) for dim in value.shape or ()] == ["batch_size", "sequence_length"]
    outputs = {value.name: value for value in base.graph.graph.outputs}
    first = outputs["last_hidden_state" if task == "feature-extraction" else "logits"]
    assert first.shape is not None
    assert str(first.shape[0]) == "batch_size"


def test_masked_positions_do_not_matter(bases: Bases) -> None:
    """Reference: the same batch with other tokens under the mask. Equal to the last bits: 1e-6."""
    base = bases("bert")
    batch = ragged(base)[1]
    other = {**batch, "input_ids": np.where(batch["attention_mask"] == 1, batch["input_ids"], 7)}
    first, second = run_graph(base.graph, [batch, other])
    assert not np.array_equal(batch["input_ids"], other["input_ids"])
    np.testing.assert_allclose(first["logits"], second["logits"], atol=1e-6)


def test_bert_is_fused_and_packed(bases: Bases) -> None:
    base = bases("bert")
    assert base.captured_by == "traced+fused"
    ops = Counter(node.op_type for node in base.graph.graph)
    assert ops["SkipLayerNormalization"] == 4
    assert ops["BiasGelu"] == 2
    packed = {
        base.locations[f"bert.encoder.layer.0.attention.self.{part}.weight"] for part in ("query", "key", "value")
    }
    assert len({place.initializer for (place,) in packed}) == 1
    assert all(place.packed for (place,) in packed)


@pytest.fixture(scope="module")
def plain(models: Models) -> Any:
    """BERT by the route without fusions."""
    from edgepeft.base.load import load_model
    from edgepeft.base.routes.traced import trace

    return trace(load_model(models("bert")), fusions=False)


@pytest.mark.parametrize("fault", ["exporter", "parity", "session"])
def test_a_failing_fused_route_falls_back_and_says_so(
    fault: str, plain: Any, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(loaded: Any, *, fusions: bool) -> Any:
        if not fusions:
            return plain
        if fault == "exporter":
            raise CaptureError("the exporter failed")
        if fault == "parity":
            raise ParityError("outputs differ from PyTorch by 0.3")
        return run_graph(ir.Model(ir.Graph([], [], nodes=[ir.node("NoSuchOp", [])], name="x"), ir_version=10), [{}])

    monkeypatch.setattr(capture_module, "trace", broken)
    said: list[str] = []
    base = capture_module.capture(models("bert"), announce=said.append)
    assert base.captured_by == "traced"
    assert [message.split(":")[0] for message in said] == ["capture route traced+fused dropped"]
    assert "SkipLayerNormalization" not in {node.op_type for node in base.graph.graph}
    assert compare(base, models("bert"), ragged(base)[1]) <= TOLERANCE


def test_a_graph_that_computes_something_else_fails_parity(bases: Bases, models: Models) -> None:
    """One bias off by 0.01 is a hundred times the tolerance."""
    from edgepeft.base.load import load_model
    from edgepeft.base.parity import parity

    base, loaded = bases("bert"), load_model(models("bert"))
    assert parity(base.graph, loaded) <= TOLERANCE
    graph = base.graph.clone()
    (place,) = base.locations["classifier.bias"]
    graph.graph.initializers[place.initializer].const_value = ir.tensor(base.weights["classifier.bias"] + 0.01)
    with pytest.raises(ParityError, match=r"differ from PyTorch by 0\.01"):
        parity(graph, loaded)


def test_no_route_left_is_an_error_with_every_reason(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(loaded: Any, *, fusions: bool) -> Any:
        raise CaptureError(f"broken {fusions}")

    monkeypatch.setattr(capture_module, "trace", broken)
    with pytest.raises(CaptureError, match=r"broken True.*broken False"):
        capture_module.capture(models("bert"))


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_default_initialisation_is_told_apart(architecture: str, models: Models, bases: Bases) -> None:
    """All biases zero, all norms one, the head not in the checkpoint: contents alone could not tell them apart."""
    options: dict[str, Any] = {"default_init": True, "encoder_only": True}
    base = bases(architecture, **options)
    assert base.fresh
    assert all(name.startswith("classifier") for name in base.fresh)
    assert not [name for name, places in base.locations.items() if not places]
    owners = Counter(place for places in base.locations.values() for place in places)
    assert max(owners.values()) == 1, "two parameters were found at one place"
    # The markers are gone: every initializer holds the checkpoint's numbers again, the head zeros.
    initializers = base.graph.graph.initializers
    for name, places in base.locations.items():
        for place in places:
            stored = place.read(initializers[place.initializer].const_value.numpy())  # type: ignore[union-attr]
            np.testing.assert_array_equal(stored, base.weights[name])
    for name, parameter in base.reference.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), base.weights[name])
    batch = ragged(base)[0]
    np.testing.assert_array_equal(run_graph(base.graph, [batch])[0]["logits"], np.zeros((2, 2), np.float32))
    assert base.labels == ("LABEL_0", "LABEL_1")


def test_identity_is_the_weights(models: Models, tmp_path: Path) -> None:
    from edgepeft.base.load import load_model

    encoder = models("distilbert", default_init=True, encoder_only=True)
    first = load_model(encoder, task="text-classification").identity
    assert first == load_model(encoder, task="token-classification").identity, "a fresh head is outside the identity"
    assert first != load_model(models("distilbert"), task="text-classification").identity
    # Stored in half the bits, the numbers differ, so the identity does; loaded twice it is the same.
    half = build_model(tmp_path / "half", dtype="float16")
    assert load_model(half).identity == load_model(half).identity
    assert load_model(half).identity != load_model(models("bert")).identity


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_captured_in_fp32(dtype: str, models: Models, bases: Bases) -> None:
    base = bases("bert", dtype=dtype)
    assert all(array.dtype == np.float32 for array in base.weights.values())
    assert compare(base, models("bert", dtype=dtype), ragged(base)[1]) <= TOLERANCE


def test_a_checkpoint_without_a_pooler_has_no_pooler_output(models: Models, bases: Bases) -> None:
    """A fill-mask checkpoint read for its embeddings: PyTorch would fill the pooler with noise."""
    base = capture(models("roberta", "fill-mask"), task="feature-extraction")
    assert [value.name for value in base.graph.graph.outputs] == ["last_hidden_state"]
    assert base.fresh == ()


def test_tied_decoder_has_an_entry_of_its_own(bases: Bases) -> None:
    base = bases("bert", "fill-mask")
    embedding = base.locations["bert.embeddings.word_embeddings.weight"]
    decoder = base.locations["cls.predictions.decoder.weight"]
    assert embedding
    assert decoder
    assert not set(embedding) & set(decoder)
    assert base.parameters == sum(p.numel() for p in base.reference.parameters())
    table = add_slots(base, reserve="all-linear").table
    sites = {part.site for slot in table.linear for part in slot.parts}
    assert "cls.predictions.decoder" in sites
    assert "bert.embeddings.word_embeddings" not in sites


def test_max_length(bases: Bases) -> None:
    """The tokenizer's limit, or the model's positions; RoBERTa-like models lose pad_token_id + 1 of them."""
    assert bases("bert").max_length == 32  # the tokenizer's
    from edgepeft.base.load import load_model

    assert bases("roberta").max_length == 32
    folder = Path(bases("roberta").source)
    config = folder / "tokenizer_config.json"
    text = config.read_text()
    try:
        config.write_text(text.replace('"model_max_length": 32', '"model_max_length": 1000000000000000019884624838656'))
        assert load_model(folder).max_length == 40 - 2  # pad_token_id is 1
    finally:
        config.write_text(text)


class TestExisting:
    """``--onnx``: a file that was exported elsewhere."""

    @pytest.fixture(scope="class")
    @staticmethod
    def exported(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        """The same tiny BERT by plain torch.onnx.export, optimized and not, without shapes inside, and quantized."""
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from transformers import AutoModelForSequenceClassification

        folder = tmp_path_factory.mktemp("existing")
        model = AutoModelForSequenceClassification.from_pretrained(models("bert")).eval()
        model.config.return_dict = False
        names = ["input_ids", "attention_mask", "token_type_ids"]
        args = tuple(torch.ones((2, 8), dtype=torch.int64) for _ in names)
        dynamic = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in names)
        found = {}
        program = torch.onnx.export(
            model, args, input_names=names, output_names=["logits"], dynamic_shapes=dynamic, dynamo=True,
            optimize=False, opset_version=20, verbose=False,
        )  # fmt: skip
        for name in ("plain", "optimized"):
            found[name] = folder / f"{name}.onnx"
            program.save(found[name])
            program.optimize()
        bare = ir.load(found["optimized"])
        for node in bare.graph:
            for output in node.outputs:
                if not output.is_graph_output():
                    output.shape = None
        found["shapeless"] = folder / "shapeless.onnx"
        ir.save(bare, found["shapeless"])
        found["quantized"] = folder / "quantized.onnx"
        quantize_dynamic(found["optimized"], found["quantized"], weight_type=QuantType.QInt8)
        return found

    @pytest.mark.parametrize("kind", ["optimized", "plain", "shapeless"])
    def test_same_base(
        self, kind: str, exported: dict[str, Path], models: Models, bases: Bases, tmp_path: Path
    ) -> None:
        base = capture(models("bert"), onnx=exported[kind])
        assert base.captured_by == "existing"
        assert base.identity == bases("bert").identity
        assert "Transpose" not in {n.op_type for n in base.graph.graph for i in n.inputs if i and i.is_initializer()}
        assert compare(base, models("bert"), ragged(base)[1]) <= TOLERANCE
        # Slots reach it: an adapter gives what it gives on the traced base. Both are fp32: 1e-5.
        checkpoint = save_lora(tmp_path / "a", models("bert"), target_modules=["query", "dense"])
        batches = ragged(base)
        results = []
        for each in (base, bases("bert")):
            from edgepeft.adapters.fill import fill_slots

            adapter = read_adapter(checkpoint, name="a", weights=each.weight)
            slotted = add_slots(each, [adapter])
            results.append(run_graph(slotted.graph, batches, fill_slots(adapter, slotted.table).tensors))
        for mine, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(mine["logits"], theirs["logits"], atol=1e-5)

    def test_other_weights(self, exported: dict[str, Path], models: Models) -> None:
        with pytest.raises(CaptureError, match="does not hold the weights of"):
            capture(models("bert", seed=5), onnx=exported["optimized"])

    def test_quantized(self, exported: dict[str, Path], models: Models) -> None:
        with pytest.raises(CaptureError, match="quantized already"):
            capture(models("bert"), onnx=exported["quantized"])

    def test_other_task(self, exported: dict[str, Path], models: Models) -> None:
        with pytest.raises(CaptureError, match="output logits has shape"):
            capture(models("bert", "token-classification"), onnx=exported["optimized"])

    def test_missing_and_damaged(self, models: Models, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match="no ONNX file at"):
            capture(models("bert"), onnx=tmp_path / "none.onnx")
        (tmp_path / "bad.onnx").write_bytes(b"\x08\x0bnot a model")
        with pytest.raises(CaptureError, match="not a readable ONNX model"):
            capture(models("bert"), onnx=tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"task": "object-detection"}, InputError, "not supported yet"),
        ({"peft_task": "NO_SUCH"}, InputError, "PEFT task type"),
        ({"peft_task": "CAUSAL_LM"}, CaptureError, "no route captures this base"),  # BERT
    ],
)
def test_wrong_tasks(options: dict[str, str], error: type[Exception], words: str, models: Models) -> None:
    with pytest.raises(error, match=words):
        capture(models("bert", "fill-mask"), **options)  # which holds every weight that a language model of BERT needs


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a folder with config"):
        capture(tmp_path)


def test_another_architecture_under_the_config(tmp_path: Path, models: Models) -> None:
    import json

    folder = build_model(tmp_path / "m", "distilbert")
    config = json.loads((models("bert") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CaptureError, match="checkpoint of another architecture"):
        capture(folder, task="text-classification")
