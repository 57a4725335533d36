"""LoRA on experts and other raw parameters (``target_parameters``): swapped and merged, against PEFT.

Mixtral, Qwen3-MoE and gpt-oss (whose experts lie as ``[in, out]``, gate and up in turn, with biases) are built by mobius,
which computes every expert for every token, gate and up projection apart. Traced, experts see their own tokens only. The
tolerance is that of ``test_methods.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal_models import build_causal
from conftest import save_lora
from test_methods_llama import Logits, difference, peft_model, run

from edgepeft import runtime as runtimes
from edgepeft.adapters.base_weights import HeldWeights
from edgepeft.adapters.edits import Adapter, LowRank, SiteEdit
from edgepeft.adapters.fill import fill_slots
from edgepeft.adapters.read import read_adapter
from edgepeft.base.base import Base
from edgepeft.base.capture import capture
from edgepeft.base.parity import TOLERANCE
from edgepeft.base.parity_causal import CausalBatch, causal_batches, empty_cache, reference_causal
from edgepeft.errors import AdapterMismatchError, CaptureError, InputError, SiteError, UnsupportedAdapterError
from edgepeft.graph.edit_base import add_slots, merge
from edgepeft.pipeline import add, describe, export, quantize, write_bundle
from edgepeft.validate.probe import bundle_probe

GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
#: The adapter must move the logits by far more than the tolerance.
CHANGES = 20 * TOLERANCE

pytestmark = [
    # PEFT 0.21 compares its patterns with modules only, and says so of those that name parameters, which it then obeys.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

#: Bases by name: the model's, and how it is captured.
MODELS = {
    "mixtral": ("mixtral", "mobius"),
    "qwen3-moe": ("qwen3-moe", "mobius"),
    "gpt-oss": ("gpt-oss", "mobius"),
    "gpt-oss-traced": ("gpt-oss", "traced"),
}
#: Options by case; the router is a raw parameter too, and of no module type that PEFT knows.
CASES: dict[str, dict[str, Any]] = {
    "experts": {"target_modules": [], "target_parameters": [GATE_UP, DOWN]},
    "down-only-by-leaf": {"target_modules": ["q_proj"], "target_parameters": ["down_proj"]},
    "ranks-alphas-rslora": {
        "target_modules": [],
        "target_parameters": [DOWN, GATE_UP],
        "use_rslora": True,
        "lora_alpha": 3,
        "rank_pattern": {"experts.down_proj": 2, "experts.gate_up_proj": 5},
        "alpha_pattern": {GATE_UP: 8},
    },
    "attention-router-experts": {
        "target_modules": ["q_proj", "v_proj", "o_proj"],
        "target_parameters": [GATE_UP, "mlp.gate.weight", DOWN],
    },
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        model = MODELS[name][0]
        if model not in made:
            made[model] = build_causal(tmp_path_factory.mktemp(model), model, num_hidden_layers=2)
        return made[model]

    return get


def _refuse(loaded: Any) -> Any:
    raise CaptureError("not by mobius here")


@pytest.fixture(scope="module")
def base_of(folder_of: Callable[[str], Path]) -> Callable[[str], Base]:
    made: dict[str, Base] = {}

    def get(name: str) -> Base:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                if MODELS[name][1] == "traced":
                    patch.setattr("edgepeft.base.routes.mobius.build", _refuse)
                made[name] = capture(folder_of(name), task="text-generation")
        return made[name]

    return get


@pytest.fixture(scope="module")
def plain_of(base_of: Callable[[str], Base]) -> Callable[[str], Logits]:
    made: dict[str, Logits] = {}

    def get(name: str) -> Logits:
        if name not in made:
            made[name] = run(base_of(name).graph, batches_of(base_of(name)))
        return made[name]

    return get


def batches_of(base: Base) -> list[CausalBatch]:
    return causal_batches(vocab=99, pad_id=0, max_length=base.max_length)


def lora_on(folder: Path, model: Path, **options: Any) -> Path:
    return save_lora(folder, model, task="text-generation", task_type="CAUSAL_LM", **options)


def experts_hit(model: Any, batch: CausalBatch) -> list[set[int]]:
    """Which experts the tokens of ``batch`` go to, by layer."""
    import torch

    chosen: list[set[int]] = []

    def note(module: Any, args: Any, output: Any) -> None:
        chosen.append({int(expert) for expert in output[2].flatten()})

    routers = [m for n, m in model.named_modules() if n.endswith(("mlp.gate", "mlp.router")) and hasattr(m, "top_k")]
    hooks = [router.register_forward_hook(note) for router in routers]
    with torch.no_grad():
        model(input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask))
    for hook in hooks:
        hook.remove()
    assert len(chosen) == len(routers) > 0
    return chosen


@pytest.mark.parametrize("name", MODELS)
def test_tokens_go_to_different_experts(name: str, base_of: Callable[[str], Base]) -> None:
    """What the comparisons below rest on: an expert that no token reaches would hide a wrong edit of it."""
    base = base_of(name)
    assert base.captured_by == MODELS[name][1]
    hit = [experts_hit(base.reference, batch) for batch in batches_of(base)]
    for layer in range(2):
        assert set.union(*(layers[layer] for layers in hit)) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", MODELS)
def test_every_expert_is_a_site(name: str, base_of: Callable[[str], Base]) -> None:
    base = base_of(name)
    matrices = [n for n, w in base.weights.items() if ".experts." in n and w.ndim == 2 and n.endswith(".weight")]
    assert len(matrices) == 2 * 4 * 2
    assert [n for n in matrices if not base.locations[n]] == []
    assert base.parameters == sum(p.numel() for p in base.reference.parameters())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_swapped_and_merged_equal_peft(
    name: str,
    case: str,
    folder_of: Callable[[str], Path],
    base_of: Callable[[str], Base],
    plain_of: Callable[[str], Logits],
    tmp_path: Path,
) -> None:
    options = CASES[case]
    if name.startswith("gpt-oss"):  # its router is called so, and has a bias
        options = {
            **options,
            "target_parameters": [t.replace("mlp.gate.", "mlp.router.") for t in options["target_parameters"]],
        }
    checkpoint = lora_on(tmp_path / "a", folder_of(name), **options)
    base, batches = base_of(name), batches_of(base_of(name))
    peft = peft_model(folder_of(name), checkpoint)
    expected = [reference_causal(peft, batch) for batch in batches]
    assert difference(plain_of(name), expected, batches) > CHANGES, "the adapter must change the output"
    adapter = read_adapter(checkpoint, name="a", weights=base.weight)
    assert adapter.exactness.exact
    slotted = add_slots(base, [adapter])
    feeds = fill_slots(adapter, slotted.table).tensors
    assert difference(run(slotted.graph, batches, feeds), expected, batches) <= TOLERANCE
    empty = run(slotted.graph, batches)
    for mine, theirs in zip(empty, plain_of(name), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True)), "empty slots give the base's bits"
    assert difference(run(merge(base, adapter).graph, batches), expected, batches) <= TOLERANCE


def test_gate_and_up_have_a_slot_each_with_the_same_a(
    folder_of: Callable[[str], Path], base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    checkpoint = lora_on(tmp_path / "a", folder_of("mixtral"), **CASES["experts"])
    base = base_of("mixtral")
    adapter = read_adapter(checkpoint, name="a", weights=base.weight)
    slotted = add_slots(base, [adapter])
    site = "model.layers.0.mlp.experts.2.gate_up_proj"
    places = slotted.table.site(site)
    assert [(p.offset, p.size, p.start, p.of) for _, p in places] == [(0, 48, 0, 96), (0, 48, 48, 96)]
    feeds = fill_slots(adapter, slotted.table).tensors
    (gate, _), (up, _) = places
    assert np.array_equal(feeds[gate.a], feeds[up.a])
    whole = np.concatenate([feeds[gate.b], feeds[up.b]], axis=2)[0]
    np.testing.assert_array_equal(whole, adapter.sites[site].low_rank.b)  # type: ignore[union-attr]
    assert slotted.added_nodes == 3 * 2 * 4 * 3


@pytest.fixture(scope="module")
def bundle(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of Mixtral with two adapters on experts of different ranks, and its int8 and q4 variants."""
    root = tmp_path_factory.mktemp("moe")
    made = {
        "one": lora_on(root / "one", folder_of("mixtral"), seed=1, **CASES["experts"]),
        "two": lora_on(root / "two", folder_of("mixtral"), seed=2, r=2, **CASES["down-only-by-leaf"]),
    }
    export(folder_of("mixtral"), made, root / "bundle", task="text-generation")
    return {**made, "bundle": root / "bundle"}


def inputs_of(runtime: Any, batch: CausalBatch) -> dict[str, np.ndarray]:
    """What a bundle's graph is fed for a batch of prompts."""
    shapes = {value.name: value.shape for value in runtime.manifest.inputs}
    feeds = {"input_ids": batch.ids, "attention_mask": batch.mask, **empty_cache(shapes, len(batch.ids))}
    if "position_ids" in shapes:
        feeds["position_ids"] = np.arange(batch.ids.shape[1])[None].repeat(len(batch.ids), 0)
    return feeds


def test_rows_of_a_batch_have_adapters_of_their_own(bundle: dict[str, Path], base_of: Callable[[str], Base]) -> None:
    runtime = runtimes.open(bundle["bundle"])
    batch = next(b for b in batches_of(base_of("mixtral")) if len(b.ids) > 2)
    inputs = inputs_of(runtime, batch)
    rows = ["two", None, "one"]
    mixed = runtime.forward(inputs, adapters=rows)["logits"]
    for row, name in enumerate(rows):
        alone = runtime.use(name).forward(inputs)["logits"]
        real = batch.mask[row] == 1
        # The same sums in another order, over ranks padded with zeros.
        np.testing.assert_allclose(mixed[row][real], alone[row][real], atol=2e-5)
    assert np.abs(runtime.use("one").forward(inputs)["logits"][0] - mixed[0]).max() > 0.01


def test_a_blend_is_the_sum_of_the_changes(bundle: dict[str, Path], base_of: Callable[[str], Base]) -> None:
    """Against the base with the weighted sum folded into its weights."""
    base, weights = base_of("mixtral"), {"one": 0.7, "two": 0.4}
    sites: dict[str, SiteEdit] = {}
    for name, weight in weights.items():
        for site, edit in read_adapter(bundle[name], name=name, weights=base.weight).sites.items():
            assert edit.low_rank is not None
            low, before = edit.low_rank, sites[site].low_rank if site in sites else None
            a, b = low.a, weight * low.b
            if before is not None:
                a, b = np.concatenate([before.a, a], axis=1), np.concatenate([before.b, b])
            sites[site] = SiteEdit(low_rank=LowRank(a, b))
    summed = merge(base, Adapter(name="sum", method="LoRA", sites=sites))
    runtime = runtimes.open(bundle["bundle"])
    probe = bundle_probe(runtime.bundle)
    batch = batches_of(base)[0]
    (expected, _), *_ = run(summed.graph, [batch])
    found = runtime.use(weights).forward(inputs_of(runtime, batch))["logits"]
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.abs((found - expected) * batch.mask[:, :, None]).max() <= TOLERANCE * scale
    assert probe.difference(probe.run(runtime), probe.run(runtime.use("one"))) > CHANGES


@pytest.mark.parametrize("variant", ["int8", "q4"])
def test_quantized_experts_keep_their_slots(variant: str, bundle: dict[str, Path]) -> None:
    """The variant with the adapter moves as the fp32 base does with it, and gives its own bits back without."""
    made = quantize(bundle["bundle"], variant)
    assert made.quantized.share > 0.9
    fp32, small = runtimes.open(bundle["bundle"]), runtimes.open(bundle["bundle"], variant=variant)
    probe = bundle_probe(small.bundle).brief()
    before = probe.run(small)
    edited = probe.run(small.use("one"))
    again = probe.run(small.use(None))
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(before, again, strict=True) for k in a)
    exact = [{k: b[k] - a[k] for k in a} for a, b in zip(probe.run(fp32), probe.run(fp32.use("one")), strict=True)]
    moved = [{k: b[k] - a[k] for k in a} for a, b in zip(before, edited, strict=True)]
    one, two = (np.concatenate([v.ravel() for d in each for v in d.values()]) for each in (exact, moved))
    # Rounding sends tokens to other experts and bends what layers behind make of the change: 0.97 and 0.77 here, where an
    # adapter that missed its experts would give about 0.
    assert float(one @ two / np.linalg.norm(one) / np.linalg.norm(two)) > (0.9 if variant == "int8" else 0.6)


def test_added_without_torch_or_weights(
    bundle: dict[str, Path], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The closed form needs the sites' sizes only, which the manifest holds: no torch, no graph."""
    checkpoint = lora_on(tmp_path / "late", folder_of("mixtral"), seed=7, r=3, **CASES["experts"])
    code = (
        "import sys; from edgepeft.adapters.read import read_adapter; from edgepeft.bundle import read_bundle;"
        "from edgepeft.pipeline._add import BundleWeights;"
        f"read_adapter({str(checkpoint)!r}, name='late', weights=BundleWeights(read_bundle({str(bundle['bundle'])!r})));"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'peft'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    added = add(bundle["bundle"], "late", checkpoint)
    assert added.changes_output
    probe = bundle_probe(added.bundle)
    peft = peft_model(folder_of("mixtral"), checkpoint)
    found = probe.run(runtimes.open(bundle["bundle"]).use("late"))
    assert probe.difference(found, probe.reference(peft)) <= TOLERANCE


def test_experts_without_a_slot_are_refused(
    bundle: dict[str, Path], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    bare = export(folder_of("mixtral"), {"q": lora_on(tmp_path / "q", folder_of("mixtral"), target_modules=["q_proj"])},
                  tmp_path / "bare", task="text-generation").bundles[0]  # fmt: skip
    with pytest.raises(
        AdapterMismatchError, match=r"parameters of model\.layers\.\d\.mlp\.experts .*no slots for them"
    ):
        add(bare.path, "one", bundle["one"])


def test_another_models_experts_are_refused(
    bundle: dict[str, Path], base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    weights = base_of("qwen3-moe").weight
    with pytest.raises(AdapterMismatchError, match=r"sizes out×in 96×64, 64×48; the base has no such"):
        read_adapter(bundle["one"], name="a", weights=weights)
    deeper = save_lora(tmp_path / "a", build_causal(tmp_path / "m", "qwen3-moe", num_hidden_layers=3), task="text-generation",
                       task_type="CAUSAL_LM", target_modules=[], target_parameters=["mlp.gate.weight"])  # fmt: skip
    with pytest.raises(AdapterMismatchError, match=r"parameters of model\.layers\.2\.mlp\.gate \(weight\)"):
        read_adapter(deeper, name="a", weights=weights)


def test_tokens_of_a_traced_expert_cannot_differ_by_row(
    folder_of: Callable[[str], Path], base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of("gpt-oss-traced")
    adapters = [
        read_adapter(lora_on(tmp_path / name, folder_of("gpt-oss"), **CASES[case]), name=name, weights=base.weight)
        for name, case in (("experts", "experts"), ("attention", "down-only-by-leaf"))
    ]
    attention = replace(adapters[1], sites={s: e for s, e in adapters[1].sites.items() if s.endswith("q_proj")})
    write_bundle(tmp_path / "b", base, add_slots(base, [adapters[0], attention]), [adapters[0], attention])
    runtime = runtimes.open(tmp_path / "b")
    batch = next(b for b in batches_of(base) if len(b.ids) == 2)
    with pytest.raises(InputError, match=r"'experts' .* experts of a traced graph"):
        runtime.forward(inputs_of(runtime, batch), adapters=["experts", None])
    mixed = runtime.forward(inputs_of(runtime, batch), adapters=["attention", None])["logits"]
    alone = runtime.use("attention").forward(inputs_of(runtime, batch))["logits"]
    np.testing.assert_allclose(mixed[0], alone[0], atol=2e-5)  # the same sums in another order


def test_slots_reserved_for_experts_to_come(
    folder_of: Callable[[str], Path], base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of("qwen3-moe")
    slotted = add_slots(base, reserve="all-linear")
    served = {site for slot in slotted.table.linear for site in slot.sites}
    assert "model.layers.1.mlp.experts.3.down_proj" in served
    checkpoint = lora_on(tmp_path / "a", folder_of("qwen3-moe"), **CASES["attention-router-experts"])
    fill_slots(read_adapter(checkpoint, name="a", weights=base.weight), slotted.table)


def test_the_plan_shows_parameters_and_experts(
    bundle: dict[str, Path], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    blind = describe(bundle["one"])
    assert [s.site for s in blind.sites][:2] == [f"model.layers.0.{DOWN}", f"model.layers.0.{GATE_UP}"]
    for base in (folder_of("mixtral"), bundle["bundle"]):
        plan = describe(bundle["one"], base)
        assert (plan.mode, plan.exactness, plan.measured) == ("swap", "exact", True)
        assert {(s.site, s.edits, s.rank) for s in plan.sites} == {
            (f"model.layers.{layer}.mlp.experts.*.{leaf}", "LowRank for each of 4 experts", 4)
            for layer in (0, 1)
            for leaf in ("gate_up_proj", "down_proj")
        }


def test_peft_has_no_dora_on_parameters(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """What keeps the closed form whole: the day PEFT can, this shows it."""
    with pytest.raises(ValueError, match="does not work with use_dora=True"):
        lora_on(tmp_path / "a", folder_of("mixtral"), use_dora=True, **CASES["experts"])


class TestMatrices:
    """``target_parameters`` on plain 2-D weights."""

    def test_a_linear_layers_weight_is_exact(
        self, folder_of: Callable[[str], Path], base_of: Callable[[str], Base], tmp_path: Path
    ) -> None:
        """``q_proj.weight`` is square here: nothing but its place in a linear layer says how it lies."""
        options = {"target_modules": [], "target_parameters": ["q_proj.weight", "o_proj.weight"]}
        checkpoint = lora_on(
            tmp_path / "a", folder_of("qwen3-moe"), rank_pattern={"o_proj.weight": 3}, use_rslora=True, **options
        )
        base, batches = base_of("qwen3-moe"), batches_of(base_of("qwen3-moe"))
        adapter = read_adapter(checkpoint, name="a", weights=base.weight)
        assert adapter.exactness.exact
        assert {site: edit.rank for site, edit in adapter.sites.items()} == {
            f"model.layers.{layer}.self_attn.{leaf}": rank for layer in (0, 1) for leaf, rank in (("q_proj", 4), ("o_proj", 3))
        }  # fmt: skip
        peft = peft_model(folder_of("qwen3-moe"), checkpoint)
        expected = [reference_causal(peft, batch) for batch in batches]
        slotted = add_slots(base, [adapter])
        found = run(slotted.graph, batches, fill_slots(adapter, slotted.table).tensors)
        assert difference(found, expected, batches) <= TOLERANCE
        assert difference(run(base.graph, batches), expected, batches) > CHANGES

    @pytest.mark.parametrize("leaf", ["c_attn", "c_proj"])
    def test_a_turned_weight_goes_through_peft(self, leaf: str, tmp_path: Path) -> None:
        """GPT-2's Conv1D holds ``[in, out]``, which PEFT takes for ``[out, in]``: right through PEFT, never guessed."""
        model = build_causal(tmp_path / "gpt2", "gpt2", num_hidden_layers=1)
        checkpoint = lora_on(tmp_path / "a", model, target_modules=[], target_parameters=[f"attn.{leaf}.weight"])
        result = export(model, {"a": checkpoint}, tmp_path / "b", task="text-generation")
        assert result.parity[0].changes_output
        assert result.parity[0].max_difference <= TOLERANCE

    def test_parameters_of_one_size_are_not_guessed(self, tmp_path: Path) -> None:
        """Two parameters of one module that the sizes cannot tell apart: PEFT's names do not either."""
        from safetensors.numpy import save_file

        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_parameters": ["experts.w1", "experts.w3"]}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        parts = {"lora_A": np.ones((8, 6), np.float32), "lora_B": np.ones((5, 8), np.float32)}
        tensors = {
            f"base_model.model.mlp.experts.{depth}{part}.weight": array
            for depth in ("", "base_layer.")
            for part, array in parts.items()
        }
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        weights = {f"mlp.experts.{e}.{leaf}.weight": np.ones((5, 6)) for e in (0, 1) for leaf in ("w1", "w3")}
        with pytest.raises(UnsupportedAdapterError, match=r"\(w1, w3\) .* fit in several ways"):
            read_adapter(tmp_path, name="a", weights=HeldWeights(weights))


def test_a_parameter_of_no_linear_map_is_refused(
    folder_of: Callable[[str], Path], base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    """gpt-oss's biases of all experts are 2-D, and PEFT would adapt them; no slot can."""
    checkpoint = lora_on(
        tmp_path / "a", folder_of("gpt-oss"), target_modules=[], target_parameters=["experts.down_proj_bias"]
    )
    with pytest.raises((AdapterMismatchError, UnsupportedAdapterError), match="down_proj_bias"):
        read_adapter(checkpoint, name="a", weights=base_of("gpt-oss").weight)


def test_locations_of_pieces_survive_a_copy(base_of: Callable[[str], Base]) -> None:
    """Each run of rows knows which rows it holds: writing a parameter back leaves the graph as it was."""
    base = base_of("mixtral")
    name = "model.layers.1.mlp.experts.0.gate_up_proj.weight"
    for place in base.locations[name]:
        array = base.graph.graph.initializers[place.initializer].const_value.numpy().copy()
        before = array.copy()
        place.write(array, base.weights[name])
        np.testing.assert_array_equal(array, before)
        place.write(array, np.zeros_like(base.weights[name]))
        assert not array.any()


def test_experts_trained_whole_are_merged(
    folder_of: Callable[[str], Path], base_of: Callable[[str], Base], plain_of: Callable[[str], Logits], tmp_path: Path
) -> None:
    """``modules_to_save=["experts"]``: each expert's matrix replaces the base's; gate and up stand apart, so not by slots."""
    base, batches = base_of("mixtral"), batches_of(base_of("mixtral"))
    checkpoint = lora_on(tmp_path / "a", folder_of("mixtral"), target_modules=["q_proj"], modules_to_save=["experts"])
    adapter = read_adapter(checkpoint, name="a", weights=base.weight)
    assert len(adapter.overrides) == 2 * 4 * 2
    peft = peft_model(folder_of("mixtral"), checkpoint)
    expected = [reference_causal(peft, batch) for batch in batches]
    assert difference(plain_of("mixtral"), expected, batches) > CHANGES
    assert difference(run(merge(base, adapter).graph, batches), expected, batches) <= TOLERANCE
    with pytest.raises(SiteError, match=r"experts\.0\.gate_up_proj\.weight is spread over the graph .* --mode merge"):
        add_slots(base, [adapter])


def test_an_option_without_closed_form_is_refused_beside_experts(
    folder_of: Callable[[str], Path], base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of("qwen3-moe")
    checkpoint = lora_on(tmp_path / "a", folder_of("qwen3-moe"), **CASES["down-only-by-leaf"])
    config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    (checkpoint / "adapter_config.json").write_text(json.dumps({**config, "use_qalora": True}), encoding="utf-8")
    with pytest.raises(UnsupportedAdapterError, match=r"mlp\.experts\.down_proj, the raw parameter of several experts"):
        read_adapter(checkpoint, name="a", weights=base.weight, module=lambda: base.reference)
