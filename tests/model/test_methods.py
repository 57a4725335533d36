"""Every PEFT method on a tiny BERT classifier: what is swapped or merged computes what PEFT computes.

The trained numbers are random and never zero, since many methods begin at zero and would hide a no-op. The reference is
PEFT's unmerged model in float32 on ragged padded batches; the tolerance is 1e-4 of the largest logit (and never less than
1e-4): the base itself is captured to 5e-7, and an SVD may drop 1e-4 of a weight's change.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before any Hugging Face library is imported: tests never look for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from edgepeft.adapters.fill import fill_slots
from edgepeft.adapters.form import Adapter
from edgepeft.adapters.page import methods_page
from edgepeft.adapters.read import read_adapter
from edgepeft.adapters.registry import METHODS
from edgepeft.base.capture import capture
from edgepeft.base.form import Base
from edgepeft.base.ragged import ragged_batches
from edgepeft.errors import AdapterError, NeedsPeftError, UnsupportedAdapterError
from edgepeft.graph.fold import fold
from edgepeft.graph.session import run_graph
from edgepeft.graph.slots import add_slots

# PEFT 0.21.2 reads a property that transformers 5.23 renamed, and warns of options it then ignores (November 2026).
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-4
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

    def __str__(self) -> str:
        return f"{self.peft_type}{'-' + self.label if self.label else ''}"


def _case(peft_type: str, ships: str = "swap", **options: Any) -> Case:
    settings = {key: options.pop(key) for key in ("exact", "torch_free", "label", "scale", "needs") if key in options}
    if peft_type not in {"TRAINABLE_TOKENS"}:
        options.setdefault("target_modules", ATTENTION)
        options.setdefault("modules_to_save", ["classifier"])
    return Case(peft_type, options, ships, **settings)


SVD = {"exact": False, "torch_free": False}
MERGE = {"torch_free": False}

CASES = (
    _case("LORA", r=4, lora_alpha=6),
    _case("LORA", r=4, use_dora=True, use_rslora=True, label="dora"),
    _case("LORA", r=4, trainable_token_indices={"word_embeddings": [3, 9]}, label="tokens", **SVD),
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
    _case("ROAD", "merge", variant="road_1", group_size=8, **MERGE),
    _case("ROAD", "merge", variant="road_4", group_size=8, label="road_4", **MERGE),
    _case("TRAINABLE_TOKENS", token_indices=[3, 7, 11], target_modules=["word_embeddings"], scale=0.5),
    _case("HIRA", "merge", r=4, scale=0.3, **MERGE),
    _case("SHIRA", "merge", r=2, exact=False),
    _case("C3A", "merge", block_size=8, exact=False, scale=1.0),
    _case("WAVEFT", n_frequency=6, **SVD),
    _case("OSF", "merge", **MERGE),
    _case("DELORA", r=4),
    _case("GRALORA", r=4),
    _case("GRALORA", r=4, gralora_k=4, hybrid_r=2, label="hybrid"),
    _case("TINYLORA", **SVD),
    _case("PSOFT", "merge", **MERGE),
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


def write_checkpoint(folder: Path, out: Path, case: Case) -> Path:
    """A checkpoint as PEFT saves it, whose trained numbers were all moved away from their initial values."""
    import torch
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        config = PEFT_TYPE_TO_CONFIG_MAPPING[case.peft_type](task_type="SEQ_CLS", **case.options)
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
                    noise = torch.randn_like(parameter) * case.scale
                    parameter.add_(noise.abs() if "magnitude" in name else noise)
    wrapped.save_pretrained(out)
    return out


def peft_logits(folder: Path, checkpoint: Path, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    wrapped = PeftModel.from_pretrained(model, checkpoint).eval()
    with torch.no_grad():
        return [wrapped(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits.numpy() for batch in batches]


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """max |difference| relative to the largest logit, where that is above 1."""
    scale = max(1.0, *(float(np.abs(array).max()) for array in expected))
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) / scale


def swapped(base: Base, adapter: Adapter, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    slotted = add_slots(base, [adapter])
    feeds = fill_slots(adapter, slotted.table).tensors
    return [result["logits"] for result in run_graph(slotted.graph, batches, feeds)]


def merged(base: Base, adapter: Adapter, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [result["logits"] for result in run_graph(fold(base, adapter).graph, batches)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_method(
    case: Case,
    folder: Path,
    base: Base,
    batches: list[dict[str, np.ndarray]],
    plain: list[np.ndarray],
    tmp_path: Path,
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
    if case.ships == "swap":
        assert not adapter.merge_only
        assert difference(swapped(base, adapter, batches), expected) <= TOLERANCE
    else:
        with pytest.raises(UnsupportedAdapterError, match="can only be merged: .* Export it with --mode merge"):
            swapped(base, adapter, batches)
    assert difference(merged(base, read("merge"), batches), expected) <= TOLERANCE
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


@pytest.mark.parametrize("peft_type", [m.peft_type for m in METHODS.values() if m.mode == "refuse"])
def test_refused_by_name_and_reason(peft_type: str, base: Base, tmp_path: Path) -> None:
    checkpoint = fake_checkpoint(tmp_path / "a", peft_type)
    with pytest.raises(UnsupportedAdapterError) as caught:
        read_adapter(checkpoint, name="a", weights=base.weight, module=lambda: base.reference)
    assert peft_type in str(caught.value)
    assert METHODS[peft_type].reason in str(caught.value)


def test_the_registry_names_every_method_of_peft_and_the_cases_every_method() -> None:
    from peft.utils.peft_types import PeftType

    assert set(METHODS) == {kind.value for kind in PeftType}
    assert {case.peft_type for case in CASES} == {name for name, m in METHODS.items() if m.mode != "refuse"}
    assert all(method.reason for method in METHODS.values() if method.mode != "swap")


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    assert page.read_text(encoding="utf-8") == methods_page(), "run: python -m edgepeft.adapters.page > docs/methods.md"
