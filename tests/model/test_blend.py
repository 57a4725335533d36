"""A blend is PyTorch's own weighted sum: PEFT's ``add_weighted_adapter(combination_type="cat")``, or the sum of deltas.

Adapters' numbers are random. The tolerance against PyTorch is 1e-4 (the base is captured to 5e-7); between two routes
through ONNX Runtime it is a few float32 roundings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ragged, save_lora

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.cli import main
from edgepeft.errors import InputError, UnknownAdapterError
from edgepeft.pipeline import add, add_slots, blend, read_adapter, write_bundle

TOLERANCE = 1e-4
#: The same numbers summed in another order.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def checkpoints(models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, model = tmp_path_factory.mktemp("blend"), models("bert")
    head = {"task_type": "SEQ_CLS", "num_labels": 3}
    return {
        "a": save_lora(folder / "a", model, r=2, lora_alpha=7, seed=1, scale=0.3),
        "b": save_lora(folder / "b", model, r=5, target_modules="all-linear", use_rslora=True, seed=2, scale=0.2,
                       exclude_modules=["classifier"]),
        "gained": save_lora(folder / "gained", model, use_dora=True, seed=3),
        "first": save_lora(folder / "first", model, seed=4, scale=0.3, record={"labels": ["x", "y", "z"]}, **head),
        "second": save_lora(folder / "second", model, seed=5, scale=0.3, record={"labels": ["u", "v", "w"]}, **head),
        "biased": save_lora(folder / "biased", model, seed=6, bias="lora_only"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def bundle(bases: Callable[..., Any], checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = bases("bert")
    adapters = [read_adapter(path, name=name, weights=base.weight) for name, path in checkpoints.items()]
    return write_bundle(tmp_path_factory.mktemp("b") / "bundle", base, add_slots(base, adapters), adapters).path


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(bundle, tmp_path / "own"))


@pytest.fixture(scope="module")
def batches(bases: Callable[..., Any]) -> list[dict[str, np.ndarray]]:
    return ragged(bases("bert"))


def peft_blend(
    model: Path, checkpoints: dict[str, Path], weights: dict[str, float], batches: list[dict[str, np.ndarray]]
) -> list[np.ndarray]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(model)
    first, *rest = weights
    wrapped = PeftModel.from_pretrained(base, checkpoints[first], adapter_name=first)
    for name in rest:
        wrapped.load_adapter(checkpoints[name], adapter_name=name)
    wrapped.add_weighted_adapter(list(weights), list(weights.values()), "blend", combination_type="cat")
    wrapped.set_adapter("blend")
    with torch.no_grad():
        return [wrapped.eval()(**{k: torch.from_numpy(v) for k, v in b.items()}).logits.numpy() for b in batches]


def logits(model: runtime.Runtime, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [model.forward(batch)["logits"] for batch in batches]


def worst(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True))


def test_a_blend_is_pefts_weighted_adapter(
    models: Callable[..., Path], checkpoints: dict[str, Path], bundle: Path, batches: list[dict[str, np.ndarray]]
) -> None:
    """Adapters at the same sites, as PEFT asks for: query and value, ranks 2 and 4."""
    weights = {"a": 0.7, "first": 0.3}
    expected = peft_blend(models("bert"), checkpoints, weights, batches)
    model = runtime.open(bundle)
    plain = logits(model, batches)
    assert worst(expected, plain) > 0.01
    # PEFT's blend has the head that was active, the one of the first adapter: the base's.
    assert worst(logits(model.use(weights, head="a"), batches), expected) <= TOLERANCE
    assert model.active == "a=0.7, first=0.3"
    assert all(np.array_equal(f, p) for f, p in zip(logits(model.use(None), batches), plain, strict=True))


@pytest.mark.parametrize("weights", [{"a": 0.7, "b": 0.3}, {"b": 1.5, "a": -0.5}, {"a": -1.0}, {"a": 0.0, "b": 1.0}])
def test_a_blend_is_the_sum_of_deltas(
    weights: dict[str, float], bases: Callable[..., Any], checkpoints: dict[str, Path], bundle: Path,
    batches: list[dict[str, np.ndarray]],
) -> None:  # fmt: skip
    """Negative weights, sites that only one has, weights that do not sum to one: PyTorch with W + Σ w Δ."""
    import torch
    from transformers import AutoModelForSequenceClassification

    base = bases("bert")
    module = AutoModelForSequenceClassification.from_pretrained(base.source).eval()
    with torch.no_grad():
        for name, weight in weights.items():
            adapter = read_adapter(checkpoints[name], name=name, weights=base.weight)
            for site, edit in adapter.sites.items():
                assert edit.low_rank is not None
                module.get_submodule(site).weight.add_(weight * torch.from_numpy(edit.low_rank.delta().T))
        expected = [module(**{k: torch.from_numpy(v) for k, v in b.items()}).logits.numpy() for b in batches]
    assert worst(logits(runtime.open(bundle).use(weights), batches), expected) <= TOLERANCE


def test_written_blends_compute_what_the_runtime_blends(
    own: Path, batches: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    weights = {"a": 0.7, "b": 0.3}
    expected = logits(runtime.open(own).use(weights), batches)
    added = blend(own, weights, "c")
    assert added.changes_output  # type: ignore[union-attr]
    entry = read_bundle(own).adapter("c")
    assert (entry.method, entry.source) == ("blend", "blend of a=0.7, b=0.3")
    assert max(entry.ranks.values()) == 2 * 3 + 5 * 3 - 2  # q and v of a, q, k and v of b in one packed slot
    model = runtime.open(own)
    assert worst(logits(model.use("c"), batches), expected) == 0.0
    assert worst(logits(model.use("c", scale=0.5), batches), logits(model.use(weights, scale=0.5), batches)) <= ROUNDING
    # A blend of a blend is a blend.
    assert worst(logits(model.use({"c": 1.0, "a": -0.7}), batches), logits(model.use({"b": 0.3}), batches)) <= ROUNDING
    path = blend(own, weights, str(tmp_path / "c.onnx_adapter"))
    assert path == tmp_path / "c.onnx_adapter"
    assert add(own, "again", tmp_path / "c.onnx").entry.ranks == entry.ranks
    assert worst(logits(runtime.open(own).use("again"), batches), expected) == 0.0


def test_heads_are_taken_from_the_adapter_that_is_named(bundle: Path, batches: list[dict[str, np.ndarray]]) -> None:
    model = runtime.open(bundle)
    weights = {"first": 0.5, "second": 0.5}
    with pytest.raises(InputError, match=r"'first' and 'second' replace classifier\.\w+ differently.*--head first"):
        model.use(weights)
    assert model.active is None
    assert model.use(weights, head="second").labels == ("u", "v", "w")
    one = logits(model, batches)
    assert model.use(weights, head="first").labels == ("x", "y", "z")
    assert worst(one, logits(model, batches)) > 0.01
    # The same adapter twice over: its own head, nothing to choose.
    assert worst(logits(model.use({"second": 1.0}), batches), logits(model.use("second"), batches)) == 0.0


def test_what_has_no_weighted_sum_is_refused(bundle: Path) -> None:
    model = runtime.open(bundle).use("a")
    for weights, message in (
        ({"a": 0.5, "gained": 0.5}, r"'gained' \(DoRA\) cannot be blended.*not linear in a weight"),
        ({"a": 0.5, "biased": 0.5}, r"replace bert\S+\.bias differently"),
        ({"a": float("nan")}, "must be a finite number"),
        ({"a": "much"}, "must be a finite number"),
        ({}, "at least one adapter"),
    ):
        with pytest.raises(InputError, match=message):
            model.use(weights)  # type: ignore[arg-type]
    with pytest.raises(UnknownAdapterError, match="no adapter 'nobody'"):
        model.use({"a": 0.5, "nobody": 0.5})
    with pytest.raises(InputError, match="'b' is not among the adapters"):
        model.use({"a": 0.5}, head="b")
    with pytest.raises(InputError, match="is for blends"):
        model.use("a", head="a")
    assert model.active == "a", "what was in use stays in use"


def test_command_line(own: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    done = call("blend", own, "a=0.7", "b=0.3", "--out", "c", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["adapter"] == "c"
    assert call("blend", own, "--out", "d", "--", "a=1", "b=-0.5").exit_code == 0
    shown = call("run", own, "a good film", "--adapter", "a=0.7,b=0.3", "--json")
    named = call("run", own, "a good film", "--adapter", "c", "--json")
    assert json.loads(shown.stdout)[0]["probabilities"] == json.loads(named.stdout)[0]["probabilities"]
    for arguments, message in (
        (("a=0.7", "b=0.3", "--out", "c"), "already has an adapter 'c'"),
        (("a=0.7", "a=0.3", "--out", "e"), "'a' is given twice"),
        (("a", "--out", "e"), "expected NAME=WEIGHT"),
        (("a=much", "--out", "e"), "'much' is not a number"),
        (("a=0.7", "--out", "a", "--replace"), "is one of the blended adapters"),
        (("a=0.7", "--out", "no/pe"), "cannot be a name"),
        (("a=0.7", "--out", tmp_path / "nowhere" / "c.onnx"), "is not a folder"),
        (("a=0.7", "gained=1", "--out", "e"), "cannot be blended"),
    ):
        failed = call("blend", own, *arguments)
        assert failed.exit_code == 2, arguments
        assert message in failed.stderr
    assert set(read_bundle(own).manifest.adapters) >= {"a", "c", "d"}
    assert call("blend", own, "a=0.2", "--out", "c", "--replace").exit_code == 0
