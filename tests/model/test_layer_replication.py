"""LoRA's ``layer_replication``: a base whose layers are repeated, each copy with an adapter of its own.

PEFT's merge of such a model is wrong (its copies share the weights that it merges into), so the reference is always PEFT
unmerged. The tolerance is that of ``test_methods.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from causal_models import build_causal
from conftest import build_model, ragged, save_lora

from edgepeft import runtime as runtimes
from edgepeft.adapters.base_weights import HeldWeights
from edgepeft.adapters.fill import fill_slots
from edgepeft.adapters.read import read_adapter
from edgepeft.base.capture import capture
from edgepeft.base.load import load_model
from edgepeft.base.parity import TOLERANCE, output_difference, reference_outputs
from edgepeft.errors import AdapterMismatchError, InputError, UnsupportedAdapterError
from edgepeft.graph.edit_base import add_slots, merge
from edgepeft.graph.run import run_graph
from edgepeft.pipeline import add, describe, export
from edgepeft.validate import validate
from edgepeft.validate.reference import peft_model

#: Layer 1 twice: of 3 layers, 4.
LAYERS = [[0, 2], [1, 3]]
LLAMA: dict[str, Any] = {
    "task": "text-generation",
    "task_type": "CAUSAL_LM",
    "target_modules": ["q_proj", "v_proj", "down_proj"],
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied Llama of three layers, adapters over four of them, and a bundle with the first."""
    root = tmp_path_factory.mktemp("deep")
    model = build_causal(root / "model", "llama")
    made = {
        "first": save_lora(root / "first", model, seed=1, layer_replication=LAYERS, **LLAMA),
        "second": save_lora(root / "second", model, seed=2, r=2, layer_replication=LAYERS, **LLAMA),
        "plain": save_lora(root / "plain", model, seed=3, **LLAMA),
    }
    export(model, {"first": made["first"]}, root / "bundle", task="text-generation")
    return {**made, "model": model, "bundle": root / "bundle"}


def test_copies_have_weights_of_their_own(llama: dict[str, Path]) -> None:
    loaded = load_model(llama["model"], layers=LAYERS)
    plain = load_model(llama["model"])
    assert loaded.model.config.num_hidden_layers == 4
    weights, before = dict(loaded.model.named_parameters()), dict(plain.model.named_parameters())
    for layer, source in enumerate([0, 1, 1, 2]):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert bool((weights[name.format(layer)] == before[name.format(source)]).all())
    assert weights["model.layers.1.mlp.down_proj.weight"] is not weights["model.layers.2.mlp.down_proj.weight"]
    # The head stays tied: a weight that the checkpoint ties is one parameter in the deeper model too.
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert loaded.identity != plain.identity


def test_swapped_added_and_restored(llama: dict[str, Path]) -> None:
    added = add(llama["bundle"], "second", llama["second"])
    assert added.changes_output
    assert added.bundle.manifest.base.layers == ((0, 2), (1, 3))
    result = validate(llama["bundle"])
    assert result.passed, result.problems
    assert {p.adapter for p in result.parity} == {"first", "second"}
    assert result.base_restored is True


def test_each_copy_has_a_slot(llama: dict[str, Path]) -> None:
    manifest = runtimes.open(llama["bundle"]).manifest
    served = {site for slot in manifest.slots.linear for site in slot.sites}
    assert {f"model.layers.{layer}.mlp.down_proj" for layer in range(4)} <= served
    assert sum(value.name.endswith(".key") for value in manifest.inputs) == 4


def test_merged_equals_peft_unmerged(llama: dict[str, Path], tmp_path: Path) -> None:
    result = export(llama["model"], {"a": llama["first"]}, tmp_path / "m", mode="merge", task="text-generation")
    assert result.parity[0].max_difference <= TOLERANCE
    assert result.bundles[0].manifest.base.layers == ((0, 2), (1, 3))


def test_an_encoder(tmp_path: Path) -> None:
    model = build_model(tmp_path / "bert")
    checkpoint = save_lora(tmp_path / "a", model, layer_replication=[[0, 2], [0, 1]])
    base = capture(model, task="text-classification", layers=[[0, 2], [0, 1]])
    adapter = read_adapter(checkpoint, name="a", weights=base.weight, layers=base.layers)
    slotted = add_slots(base, [adapter])
    batches = ragged(base)
    peft = peft_model(str(model), checkpoint, task="text-classification", num_labels=None)
    expected = [reference_outputs(peft, batch, ["logits"]) for batch in batches]
    plain = run_graph(base.graph, batches)
    swapped = run_graph(slotted.graph, batches, fill_slots(adapter, slotted.table).tensors)
    merged = run_graph(merge(base, adapter).graph, batches)
    for batch, reference, *found, without in zip(batches, expected, swapped, merged, plain, strict=True):
        assert all(output_difference(one, reference, batch["attention_mask"]) <= TOLERANCE for one in found)
        assert output_difference(without, reference, batch["attention_mask"]) > 20 * TOLERANCE


def test_settings_by_layer_go_with_their_layers(tmp_path: Path) -> None:
    """A shallower Gemma 3: its config keeps a list of three kinds of layers, which PEFT reads by the new positions."""
    model = build_causal(tmp_path / "m", "gemma3")
    checkpoint = save_lora(tmp_path / "a", model, layer_replication=[[0, 1], [0, 1]], **LLAMA)
    result = export(model, {"a": checkpoint}, tmp_path / "b", task="text-generation")
    assert result.parity[0].changes_output
    assert result.parity[0].max_difference <= TOLERANCE


def test_the_plan_is_over_the_deeper_base(llama: dict[str, Path]) -> None:
    for base in (llama["model"], llama["bundle"]):
        plan = describe(llama["first"], base)
        assert (plan.mode, plan.exactness) == ("swap", "exact")
        assert len(plan.sites) == 4 * 3


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        (
            "over a base as it is",
            UnsupportedAdapterError,
            r"layer_replication=\[\[0, 2\], \[1, 3\]\] .*edgepeft export",
        ),
        ("plain over the deeper base", AdapterMismatchError, r"layer_replication=.* the adapter has none"),
        ("another map", AdapterMismatchError, r"the adapter has \[\[0, 2\], \[1, 3\]\]"),
    ],
)
def test_the_wrong_depth_is_refused(
    name: str, error: type[Exception], words: str, llama: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint, layers = {
        "over a base as it is": ("first", ()),
        "plain over the deeper base": ("plain", LAYERS),
        "another map": ("first", [[0, 3], [2, 3]]),
    }[name]
    with pytest.raises(error, match=words):
        read_adapter(llama[checkpoint], name="a", weights=HeldWeights({}), layers=layers)


def test_adapters_of_two_bases_do_not_share_a_bundle(llama: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"first: \[\[0, 2\], \[1, 3\]\], plain: none\).*Export them apart"):
        export(
            llama["model"], {"first": llama["first"], "plain": llama["plain"]}, tmp_path / "b", task="text-generation"
        )
    with pytest.raises(AdapterMismatchError, match="the adapter has none"):
        add(llama["bundle"], "plain", llama["plain"])


@pytest.mark.parametrize(
    ("name", "layers", "words"),
    [
        ("llama", [[0, 5]], "names layers that .* does not have: it has 3"),
        ("gemma3", [[0, 2], [0, 3]], "PEFT itself cannot run Gemma3ForCausalLM with more layers"),
        ("gpt2", [[0, 2], [0, 3]], "PEFT cannot repeat layers of GPT2LMHeadModel|PEFT itself cannot run"),
    ],
)
def test_bases_that_cannot_be_rebuilt(name: str, layers: list[list[int]], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        capture(build_causal(tmp_path / "m", name), task="text-generation", layers=layers)
