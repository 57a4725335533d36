"""``export --variant``: the same bytes as through fp32, compared with PyTorch block by block, and nothing else written."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal, build_other
from conftest import build_model, save_lora

import edgepeft.base.streamed.graph as streamed_graph
from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.errors import BundleError, InputError, ParityError
from edgepeft.graph.deferred import StoredRows
from edgepeft.pipeline import export, export_variants, plan_export, quantize, store_adapters

LORA = {"task": "text-generation", "task_type": "CAUSAL_LM", "target_modules": "all-linear", "scale": 0.25}


def sharded(folder: Path, architecture: str) -> Path:
    """A tiny random model in bfloat16 shards."""
    import torch
    from transformers import AutoModelForCausalLM

    whole = folder / "whole"
    build_causal(whole) if architecture == "llama" else build_other(whole, architecture)
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model", max_shard_size="60KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / "model" / name).write_bytes((whole / name).read_bytes())
    assert len(list((folder / "model").glob("*.safetensors"))) > 1
    return folder / "model"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` in shards, and the adapters ``wide`` and ``narrow`` beside it."""
    folder = tmp_path_factory.mktemp("llama")
    model = sharded(folder, "llama")
    save_lora(folder / "wide", model, seed=1, r=8, lora_alpha=16, **LORA)
    save_lora(folder / "narrow", model, seed=2, r=3, **{**LORA, "target_modules": ["q_proj", "v_proj"]})
    return folder


def adapters_of(folder: Path) -> dict[str, str | Path]:
    return {"wide": folder / "wide", "narrow": folder / "narrow"}


def straight(variants: list[str], *arguments: Any, **options: Any) -> tuple[Any, list[str]]:
    """What was exported, and what was said; in two steps it must not be."""
    said: list[str] = []
    done = export_variants(variants, *arguments, announce=said.append, **options)
    assert not any("held in memory" in line for line in said), said
    return done, said


@pytest.mark.parametrize(
    "architecture",
    [
        "llama",
        "gpt2",
        "gemma3_text",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "mistral", "qwen3")),
    ],
)
def test_same_bytes_as_through_fp32(tmp_path: Path, architecture: str) -> None:
    model = sharded(tmp_path, architecture)
    save_lora(tmp_path / "a", model, seed=1, fan_in_fan_out=architecture == "gpt2", **LORA)
    done, _ = straight(["q4", "int8", "q8", "fp32"], model, {"a": tmp_path / "a"}, tmp_path / "mine")
    export(model, {"a": tmp_path / "a"}, tmp_path / "other")
    quantize(tmp_path / "other", "q4", method="rtn", measure=False)
    quantize(tmp_path / "other", "int8")
    quantize(tmp_path / "other", "q8")
    mine, other = read_bundle(tmp_path / "mine").manifest, read_bundle(tmp_path / "other").manifest
    assert list(mine.variants) == ["q4", "int8", "q8", "fp32"]
    assert mine.variants == other.variants
    changed = {name for name in other.files if mine.files.get(name) != other.files[name]}
    assert changed <= {"config.json", "genai_config.json"}, "the order of variants stands in them"
    assert mine.base == other.base
    assert mine.slots == other.slots
    assert 0 < done.capture_parity < 1e-4
    assert mine.provenance["capture_parity"] == done.capture_parity


def test_only_what_was_asked_for(llama: Path, tmp_path: Path) -> None:
    done, _ = straight(["q4"], llama / "model", adapters_of(llama), tmp_path / "out")
    bundle = read_bundle(tmp_path / "out")
    assert list(bundle.manifest.variants) == ["q4"]
    assert {path.name for path in (tmp_path / "out" / "onnx").iterdir()} == {"model_q4.onnx", "model_q4.onnx_data"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {each.adapter: each.changes_output for each in done.parity} == {"wide": True, "narrow": True}
    assert all(0 < each.max_difference < 1e-4 for each in done.parity)
    bundle.verify()
    with runtime.open(tmp_path / "out") as model:
        assert model.variant == "q4"
        assert model.adapter("wide").generate("the film", max_new_tokens=3).text is not None


@pytest.mark.parametrize("limit", [pytest.param(1, marks=pytest.mark.slow), 1000])
def test_large_tables_and_heads_are_read_in_pieces(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """A head is multiplied by pieces of rows, and of a table only used rows are read: the same parity."""
    monkeypatch.setattr("edgepeft.base.streamed.lockstep.LARGE", limit)
    monkeypatch.setattr("edgepeft.graph.deferred.PIECE", limit)
    done, _ = straight(["q4"], llama / "model", adapters_of(llama), tmp_path / "out")
    assert done.capture_parity < 1e-4
    straight(["fp32", "int8"], llama / "model", {}, tmp_path / "pieces")
    monkeypatch.undo()
    straight(["fp32", "int8"], llama / "model", {}, tmp_path / "whole")
    for file in ("model.onnx_data", "model_int8.onnx_data"):
        assert (tmp_path / "pieces" / "onnx" / file).read_bytes() == (tmp_path / "whole" / "onnx" / file).read_bytes()


def test_weights_at_a_wrong_place_are_found(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values exchanged in the packed matrix, in the file only: PyTorch computes with the checkpoint's."""
    own = streamed_graph._spans

    def exchanged(lines: Any) -> list[tuple[int, int, int, int]]:
        spans = own(lines)
        return [spans[0], spans[2], spans[1]] if len(spans) == 3 else spans

    monkeypatch.setattr(streamed_graph, "_spans", exchanged)
    with pytest.raises(ParityError, match="logits of the base in q4 differ from PyTorch"):
        straight(["q4"], llama / "model", adapters_of(llama), tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("variant", ["q4", "int8"])
def test_a_weight_that_is_rounded_otherwise_is_found(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """One row of one matrix is written with a tenth more: far less than rounding to 4 bits moves it."""
    own = StoredRows.__getitem__
    spoilt = [False]

    def scaled(self: StoredRows, rows: slice) -> np.ndarray:
        found = own(self, rows)
        if found.shape[1:] == (96,):  # down_proj
            spoilt[0] = True
            found = found.copy()
            found[0] *= 1.1
        return found

    monkeypatch.setattr(StoredRows, "__getitem__", scaled)
    with pytest.raises(ParityError, match=f"logits of the base in {variant}"):
        straight([variant], llama / "model", adapters_of(llama), tmp_path / "out")
    assert spoilt[0]
    assert not any(tmp_path.iterdir())


def test_an_adapter_that_differs_is_found(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgepeft.pipeline._streamed as straight_module

    own = straight_module.read_adapter

    def other(checkpoint: Any, **options: Any) -> Any:
        return own(llama / "wide" if options["name"] == "narrow" else checkpoint, **options)

    monkeypatch.setattr(straight_module, "read_adapter", other)
    with pytest.raises(ParityError, match="adapter 'narrow': ONNX Runtime differs from PEFT"):
        straight(["q4"], llama / "model", adapters_of(llama), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_bundle(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    straight(["q4"], llama / "model", {}, out)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    own = StoredRows.__getitem__
    read = [0]

    def full(self: StoredRows, rows: slice) -> np.ndarray:
        read[0] += 1
        if read[0] > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(self, rows)

    monkeypatch.setattr(StoredRows, "__getitem__", full)
    with pytest.raises(BundleError, match=r"out was left as it was: the disk is full"):
        straight(["q4"], llama / "model", adapters_of(llama), out)
    assert before == {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_shard_is_named(llama: Path, tmp_path: Path) -> None:
    import shutil

    model = Path(shutil.copytree(llama / "model", tmp_path / "model"))
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(InputError, match=f"{shard.name} is truncated"):
        export_variants(["q4"], model, {}, tmp_path / "out")
    shard.unlink()
    with pytest.raises(InputError, match=f"lacks {shard.name}"):
        export_variants(["q4"], model, {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variants", [["w8a16"], ["nonsense"], []])
def test_variants_that_need_data_or_do_not_exist(llama: Path, tmp_path: Path, variants: list[str]) -> None:
    with pytest.raises(InputError, match="--variant takes fp32, int8, q4, q8, found"):
        export_variants(variants, llama / "model", {}, tmp_path / "out")


def in_two_steps(folder: Path, model: Path, adapters: dict[str, str | Path], reason: str, **options: Any) -> Path:
    said: list[str] = []
    export_variants(["int8"], model, adapters, folder / "out", announce=said.append, **options)
    assert any(reason in line for line in said), said
    return folder / "out"


def test_what_is_not_streamed_is_made_in_two_steps(tmp_path: Path) -> None:
    model = build_model(tmp_path / "encoder")
    save_lora(tmp_path / "a", model, task_type="SEQ_CLS")
    out = in_two_steps(tmp_path, model, {"a": tmp_path / "a"}, "only language models that continue texts")
    bundle = read_bundle(out)
    assert list(bundle.manifest.variants) == ["int8"]
    assert {path.name for path in (out / "onnx").iterdir()} == {"model_int8.onnx", "model_int8.onnx_data"}
    bundle.verify()
    with runtime.open(out) as opened:
        assert opened.adapter("a").predict("a text").label


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"init_lora_weights": "pissa"}, "may change the base's own numbers"),
        ({"bias": "all"}, "may change the base's own numbers"),
        ({"use_dora": True}, "DoRA's gains are made of the base's own numbers"),
    ],
    ids=["pissa", "bias", "dora"],
)
def test_adapters_that_need_the_base_are_compared_with_it_in_memory(
    llama: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    save_lora(tmp_path / "a", llama / "model", seed=4, **{**LORA, "target_modules": ["q_proj"], **options})
    out = in_two_steps(tmp_path, llama / "model", {"a": tmp_path / "a"}, reason)
    assert list(read_bundle(out).manifest.variants) == ["int8"]


def test_merged_bundles_in_two_steps(llama: Path, tmp_path: Path) -> None:
    out = in_two_steps(tmp_path, llama / "model", adapters_of(llama), "--mode merge changes its weights", mode="merge")
    assert {path.name: list(read_bundle(path).manifest.variants) for path in out.iterdir()} == {
        "wide": ["int8"],
        "narrow": ["int8"],
    }


@pytest.mark.parametrize("change", ["renamed", "another shape"])
def test_names_that_are_not_the_models(llama: Path, tmp_path: Path, change: str) -> None:
    """A checkpoint under other names is read by transformers, which knows or refuses them."""
    from safetensors.numpy import load_file, save_file

    model = tmp_path / "model"
    model.mkdir()
    for path in (llama / "model").iterdir():
        if not path.name.startswith("model"):
            (model / path.name).write_bytes(path.read_bytes())
    tensors: dict[str, np.ndarray] = {}
    for shard in (llama / "whole").glob("*.safetensors"):
        tensors |= load_file(shard)
    name = "model.layers.0.mlp.up_proj.weight"
    if change == "renamed":
        tensors["model.layers.0.mlp.upwards.weight"] = tensors.pop(name)
    else:
        tensors[name] = tensors[name][:-1].copy()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="up_proj") as raised:
        export_variants(["q4"], model, {}, tmp_path / "out")
    assert type(raised.value).__module__ == "edgepeft.errors"
    assert not (tmp_path / "out").exists()


def test_identity_is_the_same_and_json_stays_readable(llama: Path, tmp_path: Path) -> None:
    straight(["int8"], llama / "model", {}, tmp_path / "out", slots="all-linear")
    export(llama / "model", {}, tmp_path / "other", slots="all-linear", task="text-generation")
    assert read_bundle(tmp_path / "out").manifest.base == read_bundle(tmp_path / "other").manifest.base
    assert json.loads((tmp_path / "out" / "config.json").read_text())["transformers.js_config"]["dtype"] == "int8"


def test_the_plan_is_said_first_and_is_about_right(llama: Path, tmp_path: Path) -> None:
    planned = plan_export(llama / "model", adapters_of(llama), tmp_path / "out", variants=["q4", "int8"])
    assert (planned.streamed, planned.variants) == (True, ("q4", "int8"))
    _, said = straight(["q4", "int8"], llama / "model", adapters_of(llama), tmp_path / "out")
    assert said[0] == str(planned)
    assert "to q4, int8, block by block: about" in said[0]
    for file in planned.files:
        # Of files this small, names and places take a part that is told less well.
        least = 0 if file.name.startswith("onnx/") else 1500
        assert (tmp_path / "out" / file.name).stat().st_size == pytest.approx(file.bytes, rel=0.02, abs=least)


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_the_plan_knows_the_form_of_adapters(llama: Path, form: Any, tmp_path: Path) -> None:
    """Packed q/k/v hold the factors of all their parts; 8 bits have a scale for each rank."""
    planned = {
        f.name: f.bytes for f in plan_export(llama / "model", adapters_of(llama), tmp_path / "o", form=form).files
    }
    made = tmp_path / "out"
    export(llama / "model", adapters_of(llama), made)
    store_adapters(made, form)
    for name in adapters_of(llama):
        for suffix in ("onnx_adapter", "onnx"):
            file = f"adapters/{name}.{suffix}"
            size = (made / file).stat().st_size
            assert size == pytest.approx(planned[file], rel=0.02, abs=2500)


@pytest.mark.parametrize(
    ("what", "patch", "message"),
    [
        ("free_memory_mb", lambda: 100.0, r"takes about 1\.1 GB of memory, and 0\.1 GB are free"),
        ("free_disk_mb", lambda target: 0.0, r"takes about 0\.0 GB of disk, and 0\.0 GB are free there"),
    ],
    ids=["memory", "disk"],
)
def test_what_cannot_fit_is_refused_before_it_starts(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, patch: Any, message: str
) -> None:
    monkeypatch.setattr(f"edgepeft.pipeline._plan.{what}", patch)
    with pytest.raises(InputError, match=message):
        straight(["q4"], llama / "model", adapters_of(llama), tmp_path / "out")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr("edgepeft.pipeline._plan.free_memory_mb", lambda: None)  # a system that does not say
    monkeypatch.setattr("edgepeft.pipeline._plan.free_disk_mb", lambda target: 1e6)
    straight(["q4"], llama / "model", {}, tmp_path / "out")


def test_a_rotary_table_that_is_wrong_far_into_the_context_is_found(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where long prompts cost too much, one token behind a cache of random states stands for them."""
    import onnx_ir as ir

    for module in ("parity_causal", "parity_positions"):
        monkeypatch.setattr(f"edgepeft.base.{module}.affordable", lambda *arguments: False)
    own = streamed_graph._as_saved

    def spoilt(graph: ir.Model) -> ir.Model:
        table = graph.graph.initializers["rotary.all.cos"]
        numbers = table.const_value.numpy().copy()  # type: ignore[union-attr]
        numbers[-1] += 0.5
        table.const_value = ir.tensor(numbers, name=table.name)
        return own(graph)

    straight(["q4"], llama / "model", {}, tmp_path / "good")
    monkeypatch.setattr(streamed_graph, "_as_saved", spoilt)
    with pytest.raises(ParityError, match="logits of the base in q4 at position 191 differ from PyTorch"):
        straight(["q4"], llama / "model", {}, tmp_path / "bad")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
