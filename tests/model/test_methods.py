"""Every PEFT method on a tiny BERT classifier: what is swapped or merged computes what PEFT computes.

The trained numbers are random and never zero, since many methods begin at zero and would hide a no-op. The reference is
PEFT's unmerged model in float32 on ragged padded batches; the tolerance is 1e-4 of the largest logit (and never less than
1e-4): the base itself is captured to 5e-7, and an SVD may drop 1e-4 of a weight's change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before any Hugging Face library is imported: tests never look for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from methods_page import methods_page

from edgepeft.adapters.base_weights import HeldWeights
from edgepeft.adapters.describe import describe_adapter
from edgepeft.adapters.edits import Adapter
from edgepeft.adapters.fill import fill_slots
from edgepeft.adapters.methods.registry import METHODS
from edgepeft.adapters.read import read_adapter
from edgepeft.base.base import Base
from edgepeft.base.capture import capture
from edgepeft.base.ragged import ragged_batches
from edgepeft.errors import AdapterError, AdapterMismatchError, NeedsPeftError, SiteError, UnsupportedAdapterError
from edgepeft.graph.edit_base import add_slots, merge
from edgepeft.graph.run import run_graph

# Upstream, seen November 2026: what peft 0.21.2 says when these adapters are made and loaded.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*is_gradient_checkpointing",  # a property that transformers 5.23 renamed
        "Failed to load the CUDA extension",  # BOFT looks for a compiler
        "Setting boft_n_butterfly_factor",
        "Sparse invariant checks are implicitly disabled",  # SHiRA
        "Specified to not (load|save) p?vera_A",
        "The following rank_pattern keys did not match",  # AdaLoRA saves keys that it does not match itself
        "Unsupported layer type",  # LN tuning, of the very layers it is for
        "Model with `tie_word_embeddings=True`",
        "isinstance\\(treespec, LeafSpec\\)",
    )
]

TOLERANCE = 1e-4
#: Of the fixture ``note``: PEFT type, base, way to ship, max |difference|.
Note = Callable[[str, str, str, float], None]
ATTENTION = ["query", "value"]


@dataclass(frozen=True)
class Case:
    """One checkpoint: ``ships`` is how it must ship, ``torch_free`` whether it is read without PEFT."""

    peft_type: str
    options: dict[str, Any]
    ships: str = "swap"
    exact: bool = True
    torch_free: bool = True
    label: str = ""
    #: Standard deviation of the noise on the trained numbers.
    scale: float = 0.1
    needs: str | None = field(default=None)
    #: The task of a checkpoint that holds several.
    task: int | None = None
    #: Only the first so many numbers of each of the method's tensors were trained; 0: all of them.
    moved: int = 0

    def noise(self, name: str, parameter: Any) -> Any:
        """What training added to the tensor ``name``."""
        import torch

        noise = torch.randn_like(parameter) * self.scale
        if self.moved and "modules_to_save" not in name:
            noise.view(-1)[self.moved :] = 0.0
        return noise.abs() if "magnitude" in name else noise

    def named(self, checkpoint: Path) -> Path:
        """The checkpoint, with the task behind it that is meant."""
        return checkpoint if self.task is None else checkpoint.with_name(f"{checkpoint.name}#task={self.task}")

    def __str__(self) -> str:
        return f"{self.peft_type}{'-' + self.label if self.label else ''}"


def _case(peft_type: str, ships: str = "swap", **options: Any) -> Case:
    settings = {
        key: options.pop(key)
        for key in ("exact", "torch_free", "label", "scale", "needs", "moved", "task")
        if key in options
    }
    if peft_type not in {"TRAINABLE_TOKENS"}:
        options.setdefault("target_modules", ATTENTION)
        options.setdefault("modules_to_save", ["classifier"])
    return Case(peft_type, options, ships, **settings)


SVD = {"exact": False, "torch_free": False}
MERGE = {"torch_free": False}

CASES = (
    _case("LORA", r=4, lora_alpha=6),
    _case("LORA", r=4, use_dora=True, use_rslora=True, label="dora"),
    _case("LORA", r=4, target_parameters=["query.weight"], target_modules=[], label="parameters"),
    _case("LORA", r=4, trainable_token_indices={"word_embeddings": [3, 9]}, label="tokens"),
    _case("ADALORA", init_r=4, target_r=4, total_step=10),
    _case("ADALORA", init_r=4, target_r=3, total_step=10, label="pruned"),
    _case("ADAMSS", needs="sklearn", **SVD),
    _case("BOFT", "merge", boft_block_size=4, **MERGE),
    _case("IA3", target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], scale=0.4),
    _case("BEFT", target_modules=["value"]),
    _case("LOHA", r=3, alpha=6),
    _case("LOHA", "merge", r=5, label="wide"),
    _case("LOKR", r=2, decompose_both=True),
    _case("LOKR", "merge", r=8, label="wide"),
    _case("OFT", "merge", oft_block_size=8, r=0, **MERGE),
    _case("LN_TUNING", target_modules=["LayerNorm"]),
    _case("POLY", r=3, n_tasks=3, n_skills=4, n_splits=2, scale=0.3, task=1),
    _case("VERA", r=4, target_modules=["query", "intermediate.dense"]),
    _case("VERA", r=4, save_projection=False, label="unsaved", **SVD),
    _case("FROD", "merge", **MERGE),
    _case("PVERA", r=4),
    _case("FOURIERFT", n_frequency=6, scaling=40.0, **SVD),
    _case("FOURIERFT", "merge", n_frequency=200, label="dense", **MERGE),
    _case("GLORA", "merge", **MERGE),
    _case("HRA", r=4),
    _case("HRA", r=4, apply_GS=True, label="gs"),
    _case("VBLORA", r=2, num_vectors=12, vector_length=8, topk=2, scale=1.0),
    _case("VBLORA", r=2, num_vectors=12, vector_length=8, topk=2, scale=1.0, save_only_topk_weights=True, label="topk", **SVD),
    _case("UNILORA", r=4, scale=0.5, **SVD),
    _case("MISS", r=4),
    _case("MISS", r=5, label="uneven"),
    _case("MISS", r=4, init_weights="mini", mini_r=8, label="mini"),
    _case("MISS", "merge", r=4, init_weights="bat", label="bat", **MERGE),
    _case("RANDLORA", "merge", r=4, **MERGE),
    _case("RANDLORA", r=4, moved=3, scale=1.0, label="few", **SVD),
    _case("ROAD", "merge", variant="road_1", group_size=8, **MERGE),
    _case("ROAD", "merge", variant="road_4", group_size=8, label="road_4", **MERGE),
    _case("TRAINABLE_TOKENS", token_indices=[3, 7, 11], target_modules=["word_embeddings"], scale=0.5),
    _case("HIRA", "merge", r=4, scale=0.3, **MERGE),
    _case("SHIRA", "merge", r=2),
    _case("SHIRA", r=1, moved=6, scale=1.0, label="few", exact=False),
    _case("C3A", "merge", block_size=8, scale=1.0),
    _case("C3A", block_size=8, init_weights=True, moved=8, scale=1.0, label="block", exact=False),
    _case("WAVEFT", n_frequency=6, **SVD),
    _case("OSF", "merge", **MERGE),
    _case("OSF", effective_rank=28, scale=0.3, label="low", **SVD),
    _case("DELORA", r=4),
    _case("GRALORA", r=4),
    _case("GRALORA", r=4, gralora_k=4, hybrid_r=2, label="hybrid"),
    _case("TINYLORA", **SVD),
    _case("PSOFT", "merge", **MERGE),
    _case("PSOFT", r=4, scale=0.3, label="low", **SVD),
    _case("PEANUT", "merge", **MERGE),
    _case("SUPERTUNING", sparsity=0.995, exact=False),
    _case("DEFT", **SVD),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT classifier, 2 layers of 32, every number random."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    path = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=60,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=40,
                num_labels=3,
            )
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return capture(folder, task="text-classification")


@pytest.fixture(scope="module")
def batches(base: Base) -> list[dict[str, np.ndarray]]:
    return ragged_batches(
        vocab=60, pad_id=0, input_names=["input_ids", "attention_mask", "token_type_ids"], max_length=base.max_length
    )


@pytest.fixture(scope="module")
def plain(base: Base, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [result["logits"] for result in run_graph(base.graph, batches)]


def save_moved(auto: Any, folder: Path, out: Path, case: Case, task_type: str) -> Path:
    """A checkpoint as PEFT saves it, whose trained numbers were all moved away from their initial values."""
    import torch
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = auto.from_pretrained(folder)
        config = PEFT_TYPE_TO_CONFIG_MAPPING[case.peft_type](task_type=task_type, **case.options)
        wrapped = get_peft_model(model, config)
        if str(case) == "ADALORA-pruned":
            wrapped.peft_config["default"].rank_pattern = {
                f"{name}.lora_E.default": [True, False, True, True]
                for name, module in wrapped.base_model.model.named_modules()
                if hasattr(module, "lora_E")
            }
        with torch.no_grad():
            for name, parameter in sorted(wrapped.named_parameters()):
                if parameter.requires_grad:
                    parameter.add_(case.noise(name, parameter))
    wrapped.save_pretrained(out)
    return case.named(out)


def write_checkpoint(folder: Path, out: Path, case: Case) -> Path:
    """:func:`save_moved` of a classifier."""
    from transformers import AutoModelForSequenceClassification

    return save_moved(AutoModelForSequenceClassification, folder, out, case, "SEQ_CLS")


def peft_logits(folder: Path, checkpoint: Path, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Logits as PEFT computes them, unmerged; a task is given with every call."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    path, _, task = str(checkpoint).partition("#task=")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    wrapped = PeftModel.from_pretrained(model, path).eval()
    found = []
    with torch.no_grad():
        for batch in batches:
            tasks = {"task_ids": torch.full((len(batch["input_ids"]),), int(task))} if task else {}
            found.append(wrapped(**{k: torch.from_numpy(v) for k, v in batch.items()}, **tasks).logits.numpy())
    return found


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """max |difference| relative to the largest logit, where that is above 1."""
    scale = max(1.0, *(float(np.abs(array).max()) for array in expected))
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) / scale


def within(found: float) -> float:
    """``found``, which must be within the tolerance."""
    assert found <= TOLERANCE
    return found


def swapped(base: Base, adapter: Adapter, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    slotted = add_slots(base, [adapter])
    feeds = fill_slots(adapter, slotted.table).tensors
    return [result["logits"] for result in run_graph(slotted.graph, batches, feeds)]


def merged(base: Base, adapter: Adapter, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [result["logits"] for result in run_graph(merge(base, adapter).graph, batches)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_method(
    case: Case,
    folder: Path,
    base: Base,
    batches: list[dict[str, np.ndarray]],
    plain: list[np.ndarray],
    tmp_path: Path,
    note: Note,
) -> None:
    if case.needs:
        pytest.importorskip(case.needs, reason=f"PEFT's {case.peft_type} cannot be built without {case.needs}")
    checkpoint = write_checkpoint(folder, tmp_path / "adapter", case)
    expected = peft_logits(folder, checkpoint, batches)
    assert difference(plain, expected) > 20 * TOLERANCE, "the adapter must change the output, or the test shows nothing"

    def read(mode: Any, module: Any = lambda: base.reference) -> Adapter:
        return read_adapter(checkpoint, name="a", weights=base.weight, module=module, mode=mode)

    before = {name: array.copy() for name, array in base.weights.items()}
    adapter = read("swap")
    if case.torch_free:
        read("swap", module=None)
    else:
        with pytest.raises(NeedsPeftError):
            read("swap", module=None)
    assert adapter.exactness.exact is case.exact
    assert adapter.exactness.residual <= 1e-4
    sites = {site.site for site in describe_adapter(checkpoint).sites}
    assert all(f"{site}.weight" in base.weights for site in sites)
    assert bool(sites) is (case.peft_type != "UNILORA")  # whose tensors name no site: one vector serves all of them
    if case.ships == "swap":
        assert not adapter.merge_only
        note(case.peft_type, "bert", "swap", within(difference(swapped(base, adapter, batches), expected)))
    else:
        with pytest.raises(UnsupportedAdapterError, match=r"can only be merged: .* Export it with --mode merge"):
            swapped(base, adapter, batches)
    note(case.peft_type, "bert", "merge", within(difference(merged(base, read("merge"), batches), expected)))
    assert all(np.array_equal(before[name], array) for name, array in base.weights.items())
    parameters = {name: p.detach().numpy() for name, p in base.reference.named_parameters()}
    assert all(np.array_equal(before[name], parameters[name]) for name in before), "PEFT must not change the base"


def fake_checkpoint(out: Path, peft_type: str, **options: Any) -> Path:
    """A config and one tensor: enough for a method that is refused by its name."""
    from safetensors.numpy import save_file

    out.mkdir()
    (out / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type, **options}))
    save_file({"prompt_embeddings": np.ones((2, 2), np.float32)}, out / "adapter_model.safetensors")
    return out


@pytest.mark.parametrize("peft_type", [m.peft_type for m in METHODS.values() if m.mode in {"bake", "refuse"}])
def test_refused_by_name_and_reason(peft_type: str, base: Base, tmp_path: Path) -> None:
    tasks = METHODS[peft_type].tasks
    checkpoint = fake_checkpoint(tmp_path / "a", peft_type, **({tasks: 1} if tasks else {}))
    source = f"{checkpoint}#task=0" if tasks else checkpoint
    with pytest.raises(UnsupportedAdapterError) as caught:
        read_adapter(source, name="a", weights=base.weight, module=lambda: base.reference)
    assert peft_type in str(caught.value)
    assert METHODS[peft_type].reason in str(caught.value)


def test_the_registry_names_every_method_of_peft_and_the_cases_every_method() -> None:
    from peft.utils.peft_types import PeftType

    assert set(METHODS) == {kind.value for kind in PeftType}
    assert {case.peft_type for case in CASES} == {
        name for name, m in METHODS.items() if m.mode not in {"bake", "refuse"}
    }
    assert all(method.reason for method in METHODS.values() if method.mode != "swap")


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    figures = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    command = "python docs/methods_page.py docs/methods.json > docs/methods.md"
    assert page.read_text(encoding="utf-8") == methods_page(figures), f"run: {command}"


# ── together, and what is refused ──
def _made(folder: Path, out: Path, peft_type: str, ships: str = "swap", **options: Any) -> Path:
    return write_checkpoint(folder, out, _case(peft_type, ships, **options))


def test_adapters_of_different_methods_over_one_slotted_base(
    folder: Path, base: Base, batches: list[dict[str, np.ndarray]], plain: list[np.ndarray], tmp_path: Path
) -> None:
    sources = {
        "lora": _made(folder, tmp_path / "lora", "LORA", r=4, use_dora=True),
        "ia3": _made(folder, tmp_path / "ia3", "IA3", target_modules=["key", "value", "output.dense"],
                     feedforward_modules=["output.dense"], scale=0.4),
        "loha": _made(folder, tmp_path / "loha", "LOHA", r=2, alpha=4),
        "hra": _made(folder, tmp_path / "hra", "HRA", r=2),
        "norms": _made(folder, tmp_path / "norms", "LN_TUNING", target_modules=["LayerNorm"]),
        "bias": _made(folder, tmp_path / "bias", "BEFT", target_modules=["value"]),
        "tokens": _made(folder, tmp_path / "tokens", "TRAINABLE_TOKENS", token_indices=[3, 7],
                        target_modules=["word_embeddings"], scale=0.5),
        "fourier": _made(folder, tmp_path / "fourier", "FOURIERFT", n_frequency=6, scaling=40.0),
    }  # fmt: skip
    adapters = [
        read_adapter(source, name=name, weights=base.weight, module=lambda: base.reference)
        for name, source in sources.items()
    ]
    slotted = add_slots(base, adapters)
    for adapter in adapters:
        feeds = fill_slots(adapter, slotted.table).tensors
        found = [result["logits"] for result in run_graph(slotted.graph, batches, feeds)]
        assert difference(found, peft_logits(folder, sources[adapter.name], batches)) <= TOLERANCE, adapter.name
    # Gains split biases from Gemm nodes, which adds in another order: 1e-6 is rounding, not bits.
    empty = [result["logits"] for result in run_graph(slotted.graph, batches)]
    assert difference(empty, plain) <= 1e-6


def test_max_rank_caps_the_rank_and_reports_the_residual(folder: Path, base: Base, tmp_path: Path) -> None:
    source = _made(folder, tmp_path / "a", "FOURIERFT", n_frequency=200)
    adapter = read_adapter(source, name="a", weights=base.weight, module=lambda: base.reference, max_rank=3)
    assert {edit.rank for edit in adapter.sites.values()} == {3} == {adapter.exactness.rank}
    assert 0.1 < adapter.exactness.residual < 1.0
    assert not adapter.merge_only
    assert "residual" in str(adapter.exactness)


def test_the_smallest_rank_that_keeps_the_residual() -> None:
    from edgepeft.adapters.methods.svd import factor

    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((20, 6)))
    right, _ = np.linalg.qr(rng.standard_normal((12, 6)))
    delta = (left * [1, 0.5, 1e-2, 1e-3, 2e-5, 1e-5]) @ right.T
    low_rank, exactness = factor(delta)
    assert (low_rank.rank, exactness.rank) == (4, 4)  # what is left is 2.2e-5 of 1.118, and at rank 3 it is 9e-4
    assert exactness.residual == pytest.approx(np.hypot(2e-5, 1e-5) / np.linalg.norm(delta), rel=1e-3)
    assert np.linalg.norm(low_rank.delta() - delta) / np.linalg.norm(delta) <= 1e-4
    assert factor(np.zeros((3, 4)))[0].rank == 0


def test_what_is_no_linear_map_is_refused_whatever_its_name(folder: Path, base: Base, tmp_path: Path) -> None:
    from edgepeft.adapters.checkpoint import read_checkpoint
    from edgepeft.adapters.through_peft.lower import lower_with_peft

    source = _made(folder, tmp_path / "a", "LILY")
    with pytest.raises(UnsupportedAdapterError, match=r"LILY at bert\S+query is not a linear map of its input"):
        lower_with_peft("a", read_checkpoint(source), base.reference, method="Lily")


@pytest.mark.parametrize("sample", [True, False])
def test_a_method_that_samples_is_refused(sample: bool, folder: Path, base: Base, tmp_path: Path) -> None:
    source = _made(folder, tmp_path / "a", "PVERA", r=4, sample_at_inference=sample)
    if sample:
        with pytest.raises(UnsupportedAdapterError, match="draws noise in every forward pass"):
            read_adapter(source, name="a", weights=base.weight, module=lambda: base.reference)
    else:
        assert read_adapter(source, name="a", weights=base.weight).exactness.exact


def test_a_tied_head_is_refused_by_both_names(tmp_path: Path) -> None:
    import torch
    from peft import FourierFTConfig, get_peft_model
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForMaskedLM(config).eval()
        model.save_pretrained(tmp_path / "base")
        wrapped = get_peft_model(
            BertForMaskedLM.from_pretrained(tmp_path / "base"),
            FourierFTConfig(n_frequency=9, target_modules=["decoder"], init_weights=False),
        )
        wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    weights = HeldWeights({name: parameter.detach().numpy() for name, parameter in model.named_parameters()})
    with pytest.raises(
        UnsupportedAdapterError, match=r"cls\.predictions\.decoder, whose weight is tied to .*word_embeddings"
    ):
        read_adapter(
            tmp_path / "a",
            name="a",
            weights=weights,
            module=lambda: model,
        )


def test_tokens_of_a_tied_head_change_at_both_ends(tmp_path: Path) -> None:
    """BERT's decoder shares its weight with the embedding; PEFT trains the tokens of both, and so does a merge."""
    import torch
    from peft import PeftModel, TrainableTokensConfig, get_peft_model
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(tmp_path / "base")
        wrapped = get_peft_model(
            BertForMaskedLM.from_pretrained(tmp_path / "base"), TrainableTokensConfig(token_indices=[4, 9])
        )
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.5)
        wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    base = capture(tmp_path / "base", task="fill-mask")
    batch = ragged_batches(
        vocab=30, pad_id=0, input_names=["input_ids", "attention_mask", "token_type_ids"], max_length=20
    )[0]
    model = PeftModel.from_pretrained(BertForMaskedLM.from_pretrained(tmp_path / "base"), tmp_path / "a").eval()
    with torch.no_grad():
        expected = model(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits.numpy()
    from edgepeft.adapters.checkpoint import read_checkpoint
    from edgepeft.adapters.through_peft.lower import lower_with_peft

    closed = read_adapter(tmp_path / "a", name="a", weights=base.weight)
    through = lower_with_peft(
        "a", read_checkpoint(tmp_path / "a"), base.reference, method="Trainable tokens", weights=base.weight
    )
    mask = batch["attention_mask"][..., None]
    assert difference([run_graph(base.graph, [batch])[0]["logits"] * mask], [expected * mask]) > 20 * TOLERANCE
    for adapter in (closed, through):
        ends = {*adapter.overrides, *(f"{site}.weight" for site in adapter.sites)}  # two tokens: rank 2 at the decoder
        assert ends == {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"}
        for found in (merged(base, adapter, [batch])[0], swapped(base, adapter, [batch])[0]):
            assert difference([found * mask], [expected * mask]) <= TOLERANCE


def _change(source: Path, edit: Any) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(source / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, source / "adapter_model.safetensors")


@pytest.mark.parametrize("peft_type", ["OFT", "IA3", "LOHA", "VBLORA", "SHIRA"])
def test_a_checkpoint_with_a_tensor_too_few_or_too_many_is_refused(
    peft_type: str, folder: Path, base: Base, tmp_path: Path
) -> None:
    case = next(case for case in CASES if case.peft_type == peft_type)

    def read(name: str) -> Adapter:
        return read_adapter(tmp_path / name, name="a", weights=base.weight, module=lambda: base.reference)

    write_checkpoint(folder, tmp_path / "more", case)
    _change(tmp_path / "more", lambda t: t.update({"base_model.model.bert.stray": np.ones(3, np.float32)}))
    with pytest.raises(AdapterError, match=r"bert\.stray"):
        read("more")
    write_checkpoint(folder, tmp_path / "less", case)

    def drop(tensors: dict[str, Any]) -> None:
        del tensors[next(key for key in sorted(tensors) if METHODS[peft_type].tensor_prefix in key)]

    _change(tmp_path / "less", drop)
    if peft_type == "IA3":  # a site without its vector is a site that was not adapted
        assert len(read("less").sites) == len(base.weights and read_sites(folder, tmp_path, case, base)) - 1
    else:
        with pytest.raises(AdapterError, match=r"missing|lacks"):
            read("less")


def read_sites(folder: Path, tmp_path: Path, case: Case, base: Base) -> Any:
    return read_adapter(write_checkpoint(folder, tmp_path / "whole", case), name="a", weights=base.weight).sites


def test_an_option_without_a_closed_form_goes_through_peft(folder: Path, base: Base, tmp_path: Path) -> None:
    source = _made(folder, tmp_path / "a", "LOHA", r=2)
    config = json.loads((source / "adapter_config.json").read_text())
    config["an_option_of_tomorrow"] = 3
    (source / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(NeedsPeftError, match="an_option_of_tomorrow=3 of LOHA has no closed form"):
        read_adapter(source, name="a", weights=base.weight)


def test_describe_adapter(folder: Path, base: Base, tmp_path: Path) -> None:
    sources = {
        "loha": _made(folder, tmp_path / "loha", "LOHA", r=2),
        "oft": _made(folder, tmp_path / "oft", "OFT", oft_block_size=8, r=0),
        "fourier": _made(folder, tmp_path / "fourier", "FOURIERFT", n_frequency=6, scaling=40.0),
        "lily": _made(folder, tmp_path / "lily", "LILY"),
    }
    blind = {name: describe_adapter(source) for name, source in sources.items()}
    plans = {
        name: describe_adapter(source, weights=base.weight, module=lambda: base.reference)
        for name, source in sources.items()
    }
    assert {n: p.mode for n, p in plans.items()} == {
        "loha": "swap",
        "oft": "merge",
        "fourier": "swap",
        "lily": "bake",
    }
    assert {n: p.mode for n, p in blind.items()} == {n: p.mode for n, p in plans.items()}
    queries = [f"bert.encoder.layer.{layer}.attention.self.{site}" for layer in (0, 1) for site in ATTENTION]
    for name in ("loha", "fourier"):
        assert (
            sorted(site.site for site in plans[name].sites)
            == sorted(site.site for site in blind[name].sites)
            == queries
        )
    assert {site.rank for site in plans["loha"].sites} == {4}
    # 4 sites of two 32 x 4 factors, and a head of 3 x 32 + 3.
    assert plans["loha"].bytes == 4 * (4 * 2 * 32 * 4 + 99)
    assert plans["loha"].exactness == "exact"
    assert plans["fourier"].exactness.startswith("SVD, rank ")
    assert "the merged matrices hold" in plans["oft"].reason
    assert plans["oft"].bytes == 0
    assert "router" in plans["lily"].reason
    json.dumps([plan.as_dict() for plan in plans.values()])


# ── bundles ──
def test_adding_to_a_bundle_with_and_without_the_base(
    folder: Path, base: Base, batches: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Closed forms are added from the bundle alone; the others load the base once. A bias is never guessed."""
    from edgepeft import runtime
    from edgepeft.pipeline import add, write_bundle

    first = read_adapter(
        _made(folder, tmp_path / "dora", "LORA", r=4, use_dora=True, target_modules=["query", "key", "value"]),
        name="dora",
        weights=base.weight,
    )
    bundle = write_bundle(tmp_path / "bundle", base, add_slots(base, [first]), [first])
    sources = {
        "hra": _made(folder, tmp_path / "hra", "HRA", r=2),
        "fourier": _made(folder, tmp_path / "fourier", "FOURIERFT", n_frequency=6, scaling=40.0),
    }
    for name, source in sources.items():
        entry = add(bundle.path, name, source, force=True).entry
        assert (entry.residual is None) is (name == "hra")
        opened = runtime.open(bundle.path).use(name)
        found = [opened.forward(batch)["logits"] for batch in batches]
        assert difference(found, peft_logits(folder, source, batches)) <= TOLERANCE, name
    # IA3 scales the bias of value too, for which DoRA needed no slot: silently leaving it would be wrong.
    ia3 = _made(folder, tmp_path / "ia3", "IA3", target_modules=["value"], feedforward_modules=[], scale=0.4)
    with pytest.raises(AdapterMismatchError, match=r"edits bert\S+value\.bias.*no slot"):
        add(bundle.path, "ia3", ia3, force=True)
    oft = _made(folder, tmp_path / "oft", "OFT", oft_block_size=8, r=0)
    with pytest.raises(UnsupportedAdapterError, match="can only be merged"):
        add(bundle.path, "oft", oft, force=True)
    folder.rename(tmp_path / "moved")
    try:
        with pytest.raises(NeedsPeftError, match=r"FOURIERFT has no closed form.*the base cannot be loaded"):
            add(bundle.path, "again", sources["fourier"], force=True)
        assert add(bundle.path, "again", sources["hra"], force=True).changes_output
    finally:
        (tmp_path / "moved").rename(folder)


def test_export_in_both_modes(folder: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepeft.pipeline import _export, export

    monkeypatch.setattr(_export, "capture", lambda *args, **options: base)  # traced once for this file
    oft = _made(folder, tmp_path / "oft", "OFT", oft_block_size=8, r=0)
    with pytest.raises(UnsupportedAdapterError, match=r"'oft' \(OFT\) can only be merged: its change .* has rank 32"):
        export(folder, {"oft": oft}, tmp_path / "swap", task="text-classification")
    assert not (tmp_path / "swap").exists()
    exported = export(folder, {"oft": oft}, tmp_path / "merged", mode="merge", task="text-classification")
    assert exported.parity[0].max_difference <= TOLERANCE
    assert exported.bundles[0].manifest.merged == "oft"


def test_a_gain_on_the_input_of_a_packed_site_can_only_be_merged(
    folder: Path, base: Base, batches: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Query, key and value share one MatMul in the captured graph, so their inputs cannot be scaled apart."""
    source = _made(folder, tmp_path / "a", "IA3", target_modules=["query"], feedforward_modules=["query"], scale=0.4)
    adapter = read_adapter(source, name="a", weights=base.weight)
    with pytest.raises(SiteError, match=r"scales the input of one of several sites .* use --mode merge"):
        add_slots(base, [adapter])
    assert difference(merged(base, adapter, batches), peft_logits(folder, source, batches)) <= TOLERANCE
