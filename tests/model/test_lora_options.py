"""Everything that LoRA can carry: swap == merge == PEFT.

Reference: PEFT itself, loading the same checkpoint over the same base, unmerged, in fp32. Tolerance: 1e-4 on logits of
magnitude about 1 (measured 1e-6; a scaling, gain or bias that is wrong costs more than 1e-2, see ``CHANGES``).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bases, Models, all_equal, ragged, save_lora

from edgepeft.adapters import read_adapter
from edgepeft.adapters.fill import fill_slots
from edgepeft.base.parity import output_difference, reference_outputs
from edgepeft.errors import AdapterError, AdapterMismatchError, SiteError, UnsupportedAdapterError
from edgepeft.graph.edit_base import add_slots, merge
from edgepeft.graph.run import run_graph
from edgepeft.validate.reference import peft_model

TOLERANCE = 1e-4
#: An adapter must change the outputs by more than this, or parity would prove nothing.
CHANGES = 1e-2

ALL_LINEAR = ["query", "key", "value", "dense"]


@dataclass(frozen=True)
class Case:
    options: dict[str, Any] = field(default_factory=dict)
    architecture: str = "bert"
    task: str = "text-classification"
    num_labels: int | None = None
    #: Nodes that the slots and overrides add, where the number is a promise.
    added: int | None = None
    default_init: bool = False
    gains: bool = False


# 3 nodes a slot: packed q/k/v is one slot a layer. A 2-D activation (pooler, head) takes an Unsqueeze and a Squeeze more.
CASES = {
    "plain": Case(added=2 * 3),
    "qkv": Case({"target_modules": ["query", "key", "value"]}, added=2 * 3),
    "query-only": Case({"target_modules": ["query"]}, added=2 * 3),
    "default-init": Case({"bias": "all", "modules_to_save": ["classifier"]}, default_init=True),
    "rslora": Case({"use_rslora": True, "r": 8}),
    "patterns": Case(
        {
            "target_modules": ALL_LINEAR,
            "rank_pattern": {"query": 2, "layer.1.intermediate.dense": 7},
            "alpha_pattern": {"value": 3, r"layer\.0\.output\.dense": 11},
        }
    ),
    "patterns-rslora": Case({"rank_pattern": {"layer.1.*query": 9}, "alpha_pattern": {"query": 5}, "use_rslora": True}),
    "dora": Case({"use_dora": True}, added=2 * 4, gains=True),
    "dora-all-linear": Case({"use_dora": True, "target_modules": ALL_LINEAR, "use_rslora": True}, gains=True),
    "dora-query": Case({"use_dora": True, "target_modules": ["query"]}, gains=True),
    "lora-bias": Case({"lora_bias": True, "target_modules": ["value", "dense"]}),
    "lora-bias-all": Case({"lora_bias": True, "bias": "all", "target_modules": ["value"]}),
    "bias-all": Case({"bias": "all"}),
    "bias-lora-only": Case({"bias": "lora_only", "target_modules": ["query", "dense"]}),
    "head": Case({"modules_to_save": ["classifier"]}),
    "head-seq-cls": Case({"task_type": "SEQ_CLS"}),
    "head-five-labels": Case({"modules_to_save": ["classifier"]}, num_labels=5),
    "head-five-labels-bias-all": Case({"modules_to_save": ["classifier"], "bias": "all"}, num_labels=5),
    "pissa": Case({"init_lora_weights": "pissa", "target_modules": ["query", "dense"]}),
    "pissa-rslora": Case({"init_lora_weights": "pissa", "use_rslora": True}),
    "pissa-dora": Case({"init_lora_weights": "pissa", "use_dora": True}, gains=True),
    "olora": Case({"init_lora_weights": "olora", "target_modules": ["value", "intermediate.dense"]}),
    "gaussian": Case({"init_lora_weights": "gaussian"}),
    "orthogonal": Case({"init_lora_weights": "orthogonal"}),
    "eva": Case({"init_lora_weights": "eva"}),
    "exclude": Case({"target_modules": ALL_LINEAR, "exclude_modules": ["output.dense", "pooler.dense"]}),
    "layers": Case({"layers_to_transform": [1], "layers_pattern": "layer"}, added=3),
    "all-linear": Case({"target_modules": "all-linear"}),
    "regex": Case({"target_modules": r".*layer\.0.*(query|key)"}, added=3),
    "pooler": Case({"target_modules": ["pooler.dense"]}, added=5),
    "pooler-dora": Case({"target_modules": ["pooler.dense"], "use_dora": True}, gains=True),
    "pooler-saved": Case({"modules_to_save": ["pooler"]}),
    "norm-saved": Case({"modules_to_save": ["output.LayerNorm"], "target_modules": ["query"]}),
    "roberta-head": Case({"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}, "roberta", num_labels=4),
    "roberta-inside-head": Case({"target_modules": ["query", "classifier.dense", "out_proj"]}, "roberta"),
    "roberta-bias-all": Case({"bias": "all", "modules_to_save": ["classifier"]}, "roberta"),
    "distilbert": Case({"target_modules": ["q_lin", "lin1"], "modules_to_save": ["pre_classifier", "classifier"]}, "distilbert"),
    "electra": Case({"target_modules": ["embeddings_project", "query"], "modules_to_save": ["classifier"]}, "electra"),
    "mpnet": Case({"target_modules": ["attn.q", "attn.o"], "bias": "all"}, "mpnet"),
    "deberta-v2": Case({"target_modules": ["query_proj", "key_proj", "value_proj", "dense"]}, "deberta-v2"),
    "deberta-v2-dora": Case({"target_modules": ["query_proj"], "use_dora": True}, "deberta-v2", gains=True),
    "tokens": Case({"task_type": "TOKEN_CLS"}, task="token-classification"),
    "tokens-five-labels": Case({"modules_to_save": ["classifier"]}, task="token-classification", num_labels=5),
    "embeddings": Case({}, task="feature-extraction"),
    "fill-mask": Case({"target_modules": ["query", "transform.dense", "decoder"]}, task="fill-mask"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_swap_and_merge_equal_peft(name: str, models: Models, bases: Bases, tmp_path: Path) -> None:
    case = CASES[name]
    options = {"default_init": True} if case.default_init else {}
    folder, base = models(case.architecture, case.task, **options), bases(case.architecture, case.task, **options)
    checkpoint = save_lora(tmp_path / "a", folder, task=case.task, num_labels=case.num_labels, **case.options)
    adapter = read_adapter(checkpoint, name="a", weights=base.weight)
    batches = ragged(base)
    peft = peft_model(str(folder), checkpoint, task=case.task, num_labels=case.num_labels)
    outputs = [value.name or "" for value in base.graph.graph.outputs]
    expected = [reference_outputs(peft, batch, outputs) for batch in batches]

    def worst(found: list[dict[str, np.ndarray]]) -> float:
        return max(
            output_difference(mine, theirs, batch["attention_mask"])
            for mine, theirs, batch in zip(found, expected, batches, strict=True)
        )

    plain = run_graph(base.graph, batches)
    if case.num_labels is None:
        assert worst(plain) > CHANGES, "the adapter changes nothing, so parity would prove nothing"

    slotted = add_slots(base, [adapter])
    filled = fill_slots(adapter, slotted.table, fresh=base.fresh)
    assert worst(run_graph(slotted.graph, batches, filled.tensors)) <= TOLERANCE, "swap"
    # Without the adapter the base's own bits; a replaced constant is summed in another order (see add_slots): 1e-5.
    for mine, theirs in zip(run_graph(slotted.graph, batches), plain, strict=True):
        if slotted.table.overrides:
            assert all(np.allclose(mine[key], theirs[key], atol=1e-5) for key in theirs), "base restored"
        else:
            assert all_equal(mine, theirs), "base restored bit for bit"
    assert worst(run_graph(merge(base, adapter).graph, batches)) <= TOLERANCE, "merge"

    if case.added is not None:
        assert slotted.added_nodes == case.added
    assert any(slot.out_gain for slot in slotted.table.linear) == case.gains
    assert adapter.scalable != case.gains
    kept = ("SkipLayerNormalization", "BiasGelu", "Softmax", "Split", "LayerNormalization")
    before, after = (Counter(node.op_type for node in graph.graph) for graph in (base.graph, slotted.graph))
    assert {op: after[op] for op in kept} == {op: before[op] for op in kept}, "the base's fusions survive"


def test_a_packed_matrix_has_one_slot(models: Models, bases: Bases, tmp_path: Path) -> None:
    base = bases("bert")
    adapter = read_adapter(save_lora(tmp_path / "a", models("bert")), name="a", weights=base.weight)
    slotted = add_slots(base, [adapter])
    assert [slot.name.rpartition(".")[2] for slot in slotted.table.linear] == ["query_key_value"] * 2
    filled = fill_slots(adapter, slotted.table)
    slot = slotted.table.linear[0]
    b = filled.tensors[slot.b][0]
    assert filled.tensors[slot.a].shape == (1, 32, 8)
    assert b.shape == (8, 96)
    assert not b[:4, 32:].any()
    assert not b[:, 32:64].any(), "key has no LoRA"
    assert not b[4:, :64].any()
    assert b[:4, :32].all()
    assert b[4:, 64:].all()


def test_slots_for_many_adapters_with_other_heads(models: Models, bases: Bases, tmp_path: Path) -> None:
    """Two adapters of other ranks, sites and label counts over one slotted graph; each equals its own PEFT."""
    base, folder = bases("bert"), models("bert")
    checkpoints = {
        "two": (save_lora(tmp_path / "two", folder, r=2, modules_to_save=["classifier"], num_labels=2), 2),
        "five": (
            save_lora(tmp_path / "five", folder, seed=2, r=6, target_modules=["key", "dense"], num_labels=5,
                      modules_to_save=["classifier"]), 5,
        ),
        "dora": (save_lora(tmp_path / "dora", folder, seed=3, use_dora=True), None),
    }  # fmt: skip
    adapters = {n: read_adapter(path, name=n, weights=base.weight) for n, (path, _) in checkpoints.items()}
    slotted = add_slots(base, list(adapters.values()), reserve="all-linear")
    batches = ragged(base)
    for name, adapter in adapters.items():
        path, labels = checkpoints[name]
        peft = peft_model(str(folder), path, task=base.task, num_labels=labels)
        found = run_graph(slotted.graph, batches, fill_slots(adapter, slotted.table).tensors)
        for mine, batch in zip(found, batches, strict=True):
            np.testing.assert_allclose(
                mine["logits"], reference_outputs(peft, batch, ["logits"])["logits"], atol=TOLERANCE
            )
    for mine, theirs in zip(run_graph(slotted.graph, batches), run_graph(base.graph, batches), strict=True):
        np.testing.assert_allclose(mine["logits"], theirs["logits"], atol=1e-5)  # overrides: see above


def test_adding_slots_leaves_the_base_alone(bases: Bases) -> None:
    base = bases("bert")
    before = [(node.op_type, node.name) for node in base.graph.graph], list(base.graph.graph.initializers)
    add_slots(base, reserve="all-linear")
    assert ([(node.op_type, node.name) for node in base.graph.graph], list(base.graph.graph.initializers)) == before


def edit_config(checkpoint: Path, **changes: Any) -> Path:
    path = checkpoint / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return checkpoint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"use_bdlora": {"x": 1}}, "use_bdlora"),
        ({"frobnicate": 2}, "unknown LoRA option frobnicate=2"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": None}, "none named|NONE"),
    ],
)
def test_refused_by_name(changes: dict[str, Any], words: str, models: Models, bases: Bases, tmp_path: Path) -> None:
    checkpoint = edit_config(save_lora(tmp_path / "a", models("bert")), **changes)
    with pytest.raises(UnsupportedAdapterError, match=words):
        read_adapter(checkpoint, name="a", weights=bases("bert").weight)


class TestTensors:
    """Every tensor is consumed, or the read names what is left."""

    def rewrite(self, checkpoint: Path, change: Any) -> Path:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(checkpoint / "adapter_model.safetensors")
        save_file(change(tensors), checkpoint / "adapter_model.safetensors")
        return checkpoint

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            (lambda t: {**t, "base_model.model.extra.weight": np.ones(3, np.float32)}, AdapterError, "extra.weight"),
            (
                lambda t: {k: v for k, v in t.items() if "0.attention.self.query.lora_B" not in k},
                AdapterError,
                "lora_B",
            ),
            (lambda t: {k: v[:2] if "lora_A" in k else v for k, v in t.items()}, AdapterError, "differ in rank"),
            (lambda t: {k: v[:2] if "lora_A" in k else v[:, :2] for k, v in t.items()}, AdapterError, "rank 2.*says 4"),
            (lambda t: {k: v * np.nan for k, v in t.items()}, AdapterError, "NaN"),
        ],
    )
    def test_odd_tensors(
        self, change: Any, error: type[Exception], words: str, models: Models, bases: Bases, tmp_path: Path
    ) -> None:
        checkpoint = self.rewrite(save_lora(tmp_path / "a", models("bert")), change)
        with pytest.raises(error, match=words):
            read_adapter(checkpoint, name="a", weights=bases("bert").weight)

    def test_stored_in_half_precision(self, models: Models, bases: Bases, tmp_path: Path) -> None:
        """Reference: the same numbers rounded to float16 and widened. Equal to the bit, since B's scaling is 1."""
        checkpoint = save_lora(tmp_path / "a", models("bert"), r=4, lora_alpha=4)
        full = read_adapter(checkpoint, name="a", weights=bases("bert").weight)
        half = read_adapter(
            self.rewrite(checkpoint, lambda t: {k: v.astype(np.float16) for k, v in t.items()}),
            name="a",
            weights=bases("bert").weight,
        )
        for site, edit in full.sites.items():
            assert edit.low_rank is not None
            other = half.sites[site].low_rank
            assert other is not None
            np.testing.assert_array_equal(other.a, edit.low_rank.a.astype(np.float16).astype(np.float32))

    def test_truncated(self, models: Models, bases: Bases, tmp_path: Path) -> None:
        checkpoint = save_lora(tmp_path / "a", models("bert"))
        weights = checkpoint / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-50])
        with pytest.raises(AdapterError, match="truncated or damaged"):
            read_adapter(checkpoint, name="a", weights=bases("bert").weight)

    def test_pickle(self, models: Models, bases: Bases, tmp_path: Path) -> None:
        checkpoint = save_lora(tmp_path / "a", models("bert"))
        (checkpoint / "adapter_model.safetensors").rename(checkpoint / "adapter_model.bin")
        with pytest.raises(AdapterError, match=r"is a pickle.*safe_serialization"):
            read_adapter(checkpoint, name="a", weights=bases("bert").weight)


class TestOtherBase:
    def test_other_sizes(self, models: Models, bases: Bases, tmp_path: Path) -> None:
        wide = models("bert", sizes=(("hidden_size", 64),))
        adapter = read_adapter(save_lora(tmp_path / "a", wide), name="a", weights=bases("bert").weight)
        with pytest.raises(AdapterMismatchError, match="in size is 64, the base's is 32"):
            fill_slots(adapter, add_slots(bases("bert"), [adapter]).table)
        with pytest.raises(AdapterMismatchError, match="made for another base"):
            merge(bases("bert"), adapter)

    def test_other_architecture(self, models: Models, bases: Bases, tmp_path: Path) -> None:
        checkpoint = save_lora(tmp_path / "a", models("roberta"))
        adapter = read_adapter(checkpoint, name="a", weights=bases("bert").weight)
        with pytest.raises(
            SiteError, match=r"site roberta.*does not exist in the base; the base has, for example, bert"
        ):
            add_slots(bases("bert"), [adapter])
        with pytest.raises(SiteError, match="does not exist in the base"):
            merge(bases("bert"), adapter)


def test_embedding_lora_beside_a_tied_head(models: Models, bases: Bases, tmp_path: Path) -> None:
    """The decoder is tied to the embedding; PEFT edits only the look-up, swapped or merged."""
    base, folder = bases("bert", "fill-mask"), models("bert", "fill-mask")
    checkpoint = save_lora(tmp_path / "a", folder, task="fill-mask", target_modules=["word_embeddings"])
    adapter = read_adapter(checkpoint, name="a", weights=base.weight)
    slotted = add_slots(base, [adapter])
    (batch, *_) = ragged(base)
    expected = reference_outputs(
        peft_model(str(folder), checkpoint, task="fill-mask", num_labels=None), batch, ["logits"]
    )
    (swapped,) = run_graph(slotted.graph, [batch], fill_slots(adapter, slotted.table).tensors)
    (merged,) = run_graph(merge(base, adapter).graph, [batch])
    (plain,) = run_graph(base.graph, [batch])
    for found in (swapped, merged):
        assert output_difference(found, expected, batch["attention_mask"]) <= TOLERANCE
    assert output_difference(plain, expected, batch["attention_mask"]) > CHANGES


def test_a_fresh_head_must_come_with_the_adapter(models: Models, bases: Bases, tmp_path: Path) -> None:
    base = bases("bert", default_init=True, encoder_only=True)
    folder = models("bert", default_init=True, encoder_only=True)
    without = read_adapter(save_lora(tmp_path / "a", folder), name="a", weights=base.weight)
    for run in (lambda: fill_slots(without, add_slots(base).table, fresh=base.fresh), lambda: merge(base, without)):
        with pytest.raises(AdapterMismatchError, match=r"does not hold classifier.*modules_to_save|edits bert"):
            run()
    checkpoint = save_lora(tmp_path / "b", folder, modules_to_save=["classifier"], num_labels=4)
    adapter = read_adapter(checkpoint, name="b", weights=base.weight)
    slotted = add_slots(base, [adapter])
    batches = ragged(base)
    peft = peft_model(str(folder), checkpoint, task=base.task, num_labels=4)
    found = run_graph(slotted.graph, batches, fill_slots(adapter, slotted.table, fresh=base.fresh).tensors)
    for mine, batch in zip(found, batches, strict=True):
        np.testing.assert_allclose(mine["logits"], reference_outputs(peft, batch, ["logits"])["logits"], atol=TOLERANCE)
