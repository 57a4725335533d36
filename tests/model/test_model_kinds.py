"""Model kinds and module kinds: images, audio, texts with images, Conv1D, convolutions, embeddings.

Tiny random models of each architecture, PEFT checkpoints whose numbers are all random, and PEFT unmerged in float32 as
the reference; the tolerance is 1e-4 of the largest output, as in ``test_methods.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft import runtime
from edgepeft.adapters.fill import fill_slots
from edgepeft.adapters.read import read_adapter
from edgepeft.base.base import Base
from edgepeft.base.capture import capture
from edgepeft.base.parity import output_difference, reference_outputs
from edgepeft.base.samples import input_shapes, random_batches, vocabulary
from edgepeft.errors import InputError, SiteError
from edgepeft.graph.edit_base import add_slots, merge
from edgepeft.graph.run import run_graph
from edgepeft.pipeline import export

TOLERANCE = 1e-4

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*is_gradient_checkpointing",  # a property that transformers 5.23 renamed
        "LoRA adapter added to ConvNd layer with groups > 1",  # peft 0.21, of what is tested here
        "Failed to load the CUDA extension",  # BOFT looks for a compiler
        "`lora_bias=True` was passed but the targeted layer",
    )
]

TEXT = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

#: Kind → (transformers class, config class, config, task or None to have it inferred).
KINDS: dict[str, tuple[str, str, dict[str, Any], str | None]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", {**SMALL, "image_size": 16, "patch_size": 4, "num_labels": 3}, None),
    "convnet": ("MobileNetV2ForImageClassification", "MobileNetV2Config",
                {"image_size": 32, "depth_multiplier": 0.35, "num_labels": 3, "tf_padding": False}, None),
    "whisper": ("WhisperForAudioClassification", "WhisperConfig",
                {**TEXT, "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 4, "decoder_layers": 1,
                 "decoder_attention_heads": 4, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
                 "max_source_positions": 20, "num_labels": 3, "decoder_start_token_id": 1}, None),
    "clip": ("CLIPModel", "CLIPConfig",
             {"text_config": {**TEXT, **SMALL, "max_position_embeddings": 20},
              "vision_config": {**SMALL, "image_size": 16, "patch_size": 4}, "projection_dim": 16}, None),
    "gpt2": ("GPT2ForSequenceClassification", "GPT2Config",
             {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "num_labels": 3}, None),
    "bert": ("BertModel", "BertConfig", {"vocab_size": 60, **SMALL, "max_position_embeddings": 40}, "feature-extraction"),
}  # fmt: skip


def build(folder: Path, kind: str) -> Path:
    """A tiny model with random numbers everywhere."""
    import torch
    import transformers

    name, config, settings, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, name)(getattr(transformers, config)(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                convolves = (
                    parameter.ndim == 4 and kind == "convnet"
                )  # 17 layers deep: numbers must neither die nor explode
                noise = torch.randn_like(parameter) * ((2 / parameter[0].numel()) ** 0.5 if convolves else 0.2)
                parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
            for buffer_name, buffer in model.named_buffers():  # a batch norm of its own in every layer
                if buffer_name.endswith("running_mean"):
                    buffer.add_(torch.randn_like(buffer) * 0.1)
                elif buffer_name.endswith("running_var"):
                    buffer.copy_(0.3 + torch.rand_like(buffer))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def kinds(folders: Callable[[str], Path]) -> Callable[[str], Base]:
    made: dict[str, Base] = {}

    def get(kind: str) -> Base:
        if kind not in made:
            made[kind] = capture(folders(kind), task=KINDS[kind][3])
        return made[kind]

    return get


@dataclass(frozen=True)
class Case:
    kind: str
    label: str
    options: dict[str, Any]
    peft_type: str = "LORA"
    #: ``swap``: slots and merging agree with PEFT; ``slots``: only slots can; ``merge``: only merging can.
    ships: str = "swap"
    extra: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind}-{self.label}"


def lora(kind: str, label: str, ships: str = "swap", peft_type: str = "LORA", **options: Any) -> Case:
    if peft_type == "LORA":
        options = {"r": 4, "lora_alpha": 6, **options}
    return Case(kind, label, options, peft_type, ships)


ATTENTION = ["q_proj", "v_proj"]
POINT, SPATIAL, DEPTH = "reduce_1x1.convolution", "first_conv.convolution", "conv_3x3.convolution"
CASES = (
    lora("vit", "attention-and-head", target_modules=ATTENTION, modules_to_save=["classifier"]),
    lora("vit", "patches", target_modules=["projection", "q_proj"]),
    lora("vit", "patches-dora", target_modules=["projection"], use_dora=True, use_rslora=True),
    lora("vit", "patches-lora-bias", target_modules=["projection"], lora_bias=True),
    lora("whisper", "attention", target_modules=ATTENTION, modules_to_save=["classifier"]),
    lora("whisper", "conv1d-strided", target_modules=["conv1", "conv2", "fc1"]),
    lora("clip", "both-towers", target_modules=[*ATTENTION, "visual_projection", "text_projection"]),
    lora("clip", "patches-and-tokens", target_modules=["patch_embedding", "token_embedding"]),
    lora("convnet", "pointwise", target_modules=[POINT]),
    lora("convnet", "spatial", target_modules=[SPATIAL, "conv_1x1.convolution", "classifier"]),
    lora("convnet", "depthwise-groups", "slots", r=48, target_modules=["layer.1.conv_3x3.convolution"]),
    lora("convnet", "dora", target_modules=[POINT, SPATIAL], use_dora=True),
    lora("convnet", "norms", target_modules=[POINT], modules_to_save=["classifier"]),
    lora("convnet", "loha-conv", "swap", "LOHA", r=2, alpha=4, target_modules=[POINT]),
    lora("convnet", "oft-conv", "merge", "OFT", oft_block_size=8, r=0, target_modules=["layer.1.reduce_1x1.convolution"]),
    lora("gpt2", "conv1d", target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    lora("gpt2", "conv1d-dora", target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True),
    lora("gpt2", "conv1d-pissa", target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights="pissa"),
    lora("gpt2", "embeddings", target_modules=["wte", "wpe", "c_fc"]),
    lora("gpt2", "ia3", "swap", "IA3", target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"], fan_in_fan_out=True),
    lora("bert", "embeddings", target_modules=["word_embeddings", "query"]),
    lora("bert", "embeddings-dora", target_modules=["word_embeddings"], use_dora=True),
)  # fmt: skip


def checkpoint(folder: Path, out: Path, kind: str, peft_type: str, options: dict[str, Any]) -> Path:
    """A PEFT checkpoint over ``folder``'s model whose trained numbers were all moved away from their initial values."""
    import torch
    import transformers
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = getattr(transformers, KINDS[kind][0]).from_pretrained(folder)
        wrapped = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](**options))
        with torch.no_grad():
            for name, parameter in sorted(wrapped.named_parameters()):
                if parameter.requires_grad:
                    noise = torch.randn_like(parameter) * (0.1 if peft_type == "LORA" else 0.3)
                    parameter.add_(noise.abs() if "magnitude" in name else noise)
        wrapped.save_pretrained(out)
    return out


def samples(base: Base) -> list[dict[str, np.ndarray]]:
    vocab, pad_id = vocabulary(base.config)
    return random_batches(input_shapes(base.reference), vocab=vocab, pad_id=pad_id, max_length=base.max_length)


def worst(
    found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]], batches: list[dict[str, np.ndarray]]
) -> float:
    return max(
        output_difference(f, e, b.get("attention_mask")) for f, e, b in zip(found, expected, batches, strict=True)
    )


def peft_outputs(
    folder: Path, source: Path, kind: str, batches: list[dict[str, np.ndarray]], names: list[str]
) -> list[dict[str, np.ndarray]]:
    import transformers
    from peft import PeftModel

    model = getattr(transformers, KINDS[kind][0]).from_pretrained(folder)
    wrapped = PeftModel.from_pretrained(model, source).eval()
    for (
        module
    ) in wrapped.modules():  # Whisper reads the stride of its convolutions, which PEFT's wrapper does not pass on
        if hasattr(module, "base_layer") and hasattr(module.base_layer, "stride"):
            module.stride = module.base_layer.stride
    return [reference_outputs(wrapped, batch, names) for batch in batches]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kind(case: Case, folders: Callable[[str], Path], kinds: Callable[[str], Base], tmp_path: Path) -> None:
    base = kinds(case.kind)
    source = checkpoint(folders(case.kind), tmp_path / "a", case.kind, case.peft_type, case.options)
    batches = samples(base)
    names = [output.name or "" for output in base.graph.graph.outputs]
    plain = run_graph(base.graph, batches)
    expected = peft_outputs(folders(case.kind), source, case.kind, batches, names)
    assert worst(plain, expected, batches) > 20 * TOLERANCE, (
        "the adapter must change the output, or the test shows nothing"
    )

    def read(mode: Any) -> Any:
        return read_adapter(source, name="a", weights=base.weight, module=lambda: base.reference, mode=mode)

    if case.ships in {"swap", "slots"}:
        adapter = read("swap")
        assert not adapter.merge_only
        slotted = add_slots(base, [adapter])
        filled = fill_slots(adapter, slotted.table, fresh=base.fresh)
        assert worst(run_graph(slotted.graph, batches, filled.tensors), expected, batches) <= TOLERANCE
        # Without the adapter: the base. Gains and slots split biases and norms from the operators that ONNX Runtime fuses
        # them with, which sums in another order, 17 layers deep in the network of convolutions.
        assert worst(run_graph(slotted.graph, batches), plain, batches) <= (5e-5 if case.kind == "convnet" else 2e-6)
    if case.ships in {"swap", "merge"}:
        merged = merge(base, read("merge"))
        assert worst(run_graph(merged.graph, batches), expected, batches) <= TOLERANCE
    else:
        with pytest.raises(SiteError, match="a grouped convolution, whose low-rank change mixes its groups"):
            merge(base, read("swap"))


def unfused(graph: Any, batch: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    """What ONNX Runtime computes node by node."""
    import onnx_ir as ir
    import onnxruntime as ort

    ir.save(graph, folder / "model.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return list(session.run(None, batch))


@pytest.mark.parametrize(
    ("kind", "targets", "rank"),
    [
        ("convnet", [POINT, SPATIAL], 4),
        ("convnet", ["layer.1.conv_3x3.convolution"], 48),
        ("whisper", ["conv1", "conv2"], 4),
        ("bert", ["word_embeddings"], 4),
    ],
)
def test_rank_zero_is_the_base_bit_for_bit(
    kind: str,
    targets: list[str],
    rank: int,
    folders: Callable[[str], Path],
    kinds: Callable[[str], Base],
    tmp_path: Path,
) -> None:
    """Zero channels through a convolution and rows of no numbers from an embedding: ONNX Runtime gives zeros, every time."""
    base = kinds(kind)
    source = checkpoint(folders(kind), tmp_path / "a", kind, "LORA", {"r": rank, "target_modules": targets})
    slotted = add_slots(base, [read_adapter(source, name="a", weights=base.weight)])
    assert slotted.added_nodes == 3 * len(slotted.table.factored)
    for batch in samples(base):
        plain = unfused(base.graph, batch, tmp_path)
        for _ in range(3):
            empty = unfused(slotted.graph, batch, tmp_path)
            assert all(np.array_equal(e, p) for e, p in zip(empty, plain, strict=True))


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("vit", ["projection", "q_proj"], ["v_proj"]),
        ("convnet", [POINT, SPATIAL], ["conv_1x1.convolution"]),
        ("whisper", ["q_proj", "fc1"], ["v_proj"]),
        ("clip", ["patch_embedding", "token_embedding", "q_proj"], ["visual_projection"]),
    ],
)
def test_bundles_of_other_inputs(
    kind: str, first: list[str], second: list[str], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """export compares each adapter with PEFT; the runtime swaps, scales, blends and returns to the base's own bits."""
    sources = {
        name: checkpoint(folders(kind), tmp_path / name, kind, "LORA", {"r": 4, "target_modules": targets})
        for name, targets in (("first", first), ("second", second))
    }
    exported = export(folders(kind), sources, tmp_path / "bundle")
    assert all(parity.max_difference <= TOLERANCE and parity.changes_output for parity in exported.parity)
    model = runtime.open(tmp_path / "bundle")
    vocab, pad_id = vocabulary({**TEXT})
    shapes = {value.name: value.shape for value in model.manifest.inputs}
    batch = random_batches(shapes, vocab=vocab, pad_id=pad_id, max_length=20)[0]
    plain = model.forward(batch)
    one = model.use("first").forward(batch)
    half = model.use("first", scale=0.5).forward(batch)
    blended = model.use({"first": 0.5}).forward(batch)
    both = model.use({"first": 1.0, "second": -0.5}).forward(batch)
    name = next(iter(plain))
    assert all(np.array_equal(half[key], blended[key]) for key in plain)
    for changed in (one, half, both):
        assert not np.array_equal(changed[name], plain[name])
    assert not np.array_equal(one[name], both[name])
    again = model.use(None).forward(batch)
    assert all(np.array_equal(again[key], plain[key]) for key in plain)
    value = model.manifest.inputs[-1]
    wrong = {**batch, value.name: batch[value.name][..., :-1]}
    with pytest.raises(InputError, match=rf"input {value.name} is float32 of shape .* the base takes float32 of shape"):
        model.forward(wrong)
    if kind in {"vit", "convnet"}:
        with pytest.raises(InputError, match="cannot differ by row"):
            model.forward(batch, adapters=["first"] * len(batch["pixel_values"]))
    if kind == "whisper":
        rows = (["first", None, "second"] * 4)[: len(batch[value.name])]
        assert len(set(rows)) > 1
        mixed = model.forward(batch, adapters=rows)[name]
        for row, adapter in enumerate(rows):
            np.testing.assert_allclose(mixed[row], model.adapter(adapter).forward(batch)[name][row], atol=2e-5)


def test_a_convolution_is_added_to_a_bundle_without_its_base(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """DoRA needs the weight of the convolution, which the bundle holds."""
    from edgepeft.pipeline import add

    folder = folders("vit")
    options = {"r": 4, "target_modules": ["projection"]}
    export(
        folder,
        {"dora": checkpoint(folder, tmp_path / "dora", "vit", "LORA", {**options, "use_dora": True})},
        tmp_path / "bundle",
    )
    later = checkpoint(folder, tmp_path / "later", "vit", "LORA", {**options, "use_dora": True, "use_rslora": True})
    assert add(tmp_path / "bundle", "later", later).changes_output
    model = runtime.open(tmp_path / "bundle").use("later")
    batch = random_batches({"pixel_values": ("batch_size", 3, 16, 16)}, vocab=1, pad_id=0)[0]
    (expected,) = peft_outputs(folder, later, "vit", [batch], ["logits"])
    assert worst([model.forward(batch)], [expected], [batch]) <= TOLERANCE
