"""Adapters' folders as people have them: each is read, or refused with its own name and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Models, save_lora
from safetensors.numpy import load_file, save_file

from edgepeft.adapters.checkpoint import CONFIG_NAME, WEIGHTS_NAME, read_checkpoint
from edgepeft.adapters.layouts import plain_name
from edgepeft.errors import AdapterError

P = "base_model.model."


@pytest.fixture(scope="module")
def saved(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora(tmp_path_factory.mktemp("layouts") / "a", models("bert"), task_type="SEQ_CLS", use_dora=True)


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "a"))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    renamed = {change(name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / WEIGHTS_NAME)


@pytest.mark.parametrize(
    "change",
    [
        lambda n: f"_orig_mod.{n}",
        lambda n: f"module.{n}",
        lambda n: f"module._orig_mod.{n}",
        lambda n: n.replace(P, P + "_orig_mod."),
        lambda n: n.replace(P, P + "module."),
        lambda n: n.replace(P, P + P),
        lambda n: n.replace(".layer.1.", ".layer.1._orig_mod.").replace(P, "_fsdp_wrapped_module." + P),
        lambda n: n.replace(".layer.1.", ".layer.1._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda n: n.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight"),
        lambda n: n.removeprefix(P) if "lora_" in n else n,
    ],
)
def test_names_of_wrappers_are_taken_off(change: Callable[[str], str], adapter: Path, saved: Path) -> None:
    rename(adapter, change)
    expected, found = read_checkpoint(saved), read_checkpoint(adapter)
    for theirs, mine in ((expected.tensors, found.tensors), (expected.stored, found.stored)):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "name", ["module.bert.x", f"{P}bert.base_model.x", "prompt_embeddings", f"{P}bert.my_orig_mod.x"]
)
def test_names_of_the_base_itself_stay(name: str) -> None:
    assert plain_name(name) == name


def test_two_tensors_of_one_name_are_an_error(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS_NAME)
    first = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {first.removeprefix(P): tensors[first] + 1}, adapter / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match=r"two tensors for bert\..*lora_A.*save_pretrained"):
        read_checkpoint(adapter)


def test_shards_that_were_not_gathered(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS_NAME)
    first = next(name for name in tensors if "lora_B" in name)
    save_file(tensors | {first: np.zeros(0, np.float32)}, adapter / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match=r"1 of \d+ tensors are empty .*lora_B.*Gather them first.*zero_to_fp32"):
        read_checkpoint(adapter)


def test_what_adalora_pruned_to_rank_0_is_no_shard(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS_NAME)
    first = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {first: np.zeros((0, 32), np.float32)}, adapter / WEIGHTS_NAME)
    assert read_checkpoint(adapter).stored[first].shape == (0, 32)


def test_a_trainers_checkpoint_is_read(adapter: Path, saved: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        (adapter / name).write_bytes(b"never opened")
    assert read_checkpoint(adapter).sha256 == read_checkpoint(saved).sha256


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (("reviews",), r"holds no adapter_config.json.*An adapter lies below it: give .*/reviews$"),
        (("checkpoint-500",), r"give .*/checkpoint-500$"),
        (("checkpoint-9", "checkpoint-10"), r"2 adapters .*: checkpoint-9, checkpoint-10\. Give .*/checkpoint-10$"),
        (("checkpoint-9/first", "checkpoint-9/second"), r"checkpoint-9/first, checkpoint-9/second"),
    ],
)
def test_a_folder_above_adapters_names_them(places: tuple[str, ...], says: str, saved: Path, tmp_path: Path) -> None:
    for place in places:
        shutil.copytree(saved, tmp_path / "run" / place)
    with pytest.raises(AdapterError, match=says):
        read_checkpoint(tmp_path / "run")


def _tensors(*names: str) -> Callable[[Path], object]:
    return lambda path: save_file({name: np.ones((2, 3), np.float32) for name in names}, path)


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text.encode())


MLX_CONFIG = json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 20.0}, "num_layers": 4})


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"adapters.safetensors": _tensors("model.layers.0.q_proj.lora_a"), CONFIG_NAME: _text(MLX_CONFIG)},
            "MLX.*mlx_lm.fuse",
        ),
        ({"adapters.safetensors": _tensors("model.layers.0.q_proj.lora_a")}, "MLX adapter.*mlx_lm.fuse"),
        ({"x.safetensors": _tensors("lora_unet_down_0.lora_up.weight")}, "Kohya.*load_lora_weights"),
        ({"x.safetensors": _tensors("unet.down.0.to_q.lora_A.weight")}, "diffusers saved.*load_lora_weights"),
        ({"x.gguf": _text("GGUF")}, "GGUF file.*convert_lora_to_gguf"),
        (
            {"zero_to_fp32.py": _text(""), "latest": _text("")},
            r"DeepSpeed: gather them first with `python zero_to_fp32\.py",
        ),
        ({"pytorch_model_fsdp.bin": _text("")}, "FSDP: gather them first.*accelerate merge-weights"),
        (
            {"config.json": _text("{}"), "model.safetensors": _tensors("a.weight")},
            "whole model.*edgepeft export --model",
        ),
        (
            {CONFIG_NAME: _text('{"peft_type": "LORA"}'), "model.safetensors": _tensors("a")},
            "merged.*edgepeft export --model",
        ),
        ({CONFIG_NAME: _text('{"peft_type": "LORA"}'), "adapter_model.bin": _text("")}, "pickle.*safe_serialization"),
        ({WEIGHTS_NAME: _tensors(P + "a.lora_A.weight")}, "belongs beside its adapter_model.safetensors"),
    ],
)
def test_foreign_folders_are_refused_by_name(
    files: dict[str, Callable[[Path], object]], says: str, tmp_path: Path
) -> None:
    for name, write in files.items():
        write(tmp_path / name)
    with pytest.raises(AdapterError, match=says):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("a.gguf", _text("GGUF"), "GGUF file"),
        ("a.bin", _text("x"), "pickle"),
        ("a.safetensors", _tensors("lora_te_x.lora_down.weight"), "Kohya"),
        ("a.safetensors", _tensors("transformer.single_transformer_blocks.0.lora_A.weight"), "diffusers"),
        ("a.safetensors", _tensors("transformer.h.0.lora_A.weight"), "is a file; give the folder"),
        ("a.safetensors", _text("damaged"), "is a file; give the folder"),
    ],
)
def test_a_file_is_refused_by_what_it_is(name: str, write: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(AdapterError, match=says):
        read_checkpoint(tmp_path / name)
