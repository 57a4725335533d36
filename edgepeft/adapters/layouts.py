"""Folders that hold an adapter in another shape than PEFT's own: each is told by its files and keys, and refused by name.

What is refused comes with the folder to give instead, or the command that makes one. Pickles are told by their file's name
and never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AdapterError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

#: Folders below the given one that are looked through, and names that a message spells out.
_DEPTH, _SHOWN, _MOST_FOLDERS = 2, 8, 2000
#: Most bytes of a safetensors header that is looked at to say what a file holds.
_MAX_HEADER = 16 * 2**20

#: Wrappers that put a name before each key, around PEFT's model or around the base within it.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PEFT = "base_model.model."
_LORA = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?$")
_NAMED = re.compile(r"(?<=\.)(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.default(?=\.weight$|$)")
#: ``torch.nn.DataParallel`` and its kin stand before everything else.
_PARALLEL = "module."


def plain_name(name: str) -> str:
    """A tensor's name as PEFT itself writes it, without what torch.compile, FSDP and DataParallel put in.

    Example:
        >>> plain_name("module.base_model.model._orig_mod.pooler.dense.weight")
        'base_model.model.pooler.dense.weight'
    """
    name = _WRAPPERS.sub("", name)
    while name.startswith(_PARALLEL) and name.removeprefix(_PARALLEL).startswith((_PARALLEL, _PEFT)):
        name = name.removeprefix(_PARALLEL)
    while name.startswith(_PEFT + _PEFT):
        name = name.removeprefix(_PEFT)
    if name.startswith(_PEFT + _PARALLEL):
        name = _PEFT + name.removeprefix(_PEFT + _PARALLEL)
    # A state dict that torch saved keeps the adapter's name, or lacks the wrapper's, where PEFT's own file does the reverse.
    name = _NAMED.sub(r"\1", name)
    return name if name.startswith("base_model.") or not _LORA.search(name) else _PEFT + name


def unwrapped(stored: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The tensors by the names that PEFT gives them; :class:`AdapterError` where two would share one."""
    found: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, tensor in stored.items():
        plain = plain_name(name)
        bare = plain.removeprefix(_PEFT)
        if bare in origin:
            raise AdapterError(
                f"{path} holds two tensors for {bare}: {origin[bare]} and {name}. Only one can be the adapter's; load the "
                "adapter with peft and save it again with save_pretrained(), or remove the one that is left over."
            )
        origin[bare] = name
        found[plain] = tensor
    return found


def check_gathered(stored: Mapping[str, np.ndarray], path: Path) -> None:
    """:class:`AdapterError` for tensors without numbers: what ZeRO-3 and FSDP leave where nobody gathered the shards."""
    # A matrix of rank 0 is one that AdaLoRA pruned away, and whole; a shard that was not gathered has one dimension of 0.
    empty = sorted(name for name, tensor in stored.items() if tensor.shape == (0,))
    if empty:
        raise AdapterError(
            f"{path}: {len(empty)} of {len(stored)} tensors are empty ({_some(empty)}), as DeepSpeed ZeRO-3 and FSDP save "
            "them where the shards were not gathered first. Gather them first: `python zero_to_fp32.py . OUT` in the "
            "checkpoint's folder (DeepSpeed), `accelerate merge-weights` (FSDP), or save with "
            "stage3_gather_16bit_weights_on_model_save or FULL_STATE_DICT; then save the adapter with save_pretrained()."
        )


def _some(names: Iterable[str]) -> str:
    each = list(names)
    return ", ".join(each[:_SHOWN]) + (f", … ({len(each)} in all)" if len(each) > _SHOWN else "")


def adapters_below(folder: Path) -> list[Path]:
    """Folders below ``folder`` that hold a PEFT checkpoint, in the order of their numbers (``checkpoint-9`` before ``-10``)."""
    found: list[Path] = []
    level, looked = [folder], 0
    for _ in range(_DEPTH):
        below: list[Path] = []
        for each in level:
            try:
                below.extend(path for path in each.iterdir() if path.is_dir() and not path.is_symlink())
            except OSError:  # a folder that may not be listed holds no adapter that could be read
                continue
        looked += len(below)
        if looked > _MOST_FOLDERS:
            break
        found.extend(path for path in below if (path / CONFIG_NAME).is_file())
        level = below
    return sorted(
        found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]
    )


def _header(path: Path) -> dict[str, Any]:
    """Names and shapes in a safetensors file, from its header alone; empty where that cannot be read."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if 0 < size <= _MAX_HEADER else {}
    except (OSError, ValueError, RecursionError):
        return {}  # the answer is then told from the names of files alone
    return header if isinstance(header, dict) else {}


def _keys(path: Path) -> list[str]:
    return [str(name) for name in _header(path) if name != "__metadata__"]


def foreign_keys(names: Iterable[str]) -> str | None:
    """Whose layout tensors are in, with the command that helps, where it is not PEFT's; None for PEFT's own."""
    each = list(names)
    if any(re.match(r"(lora_unet|lora_te\d?|lora_transformer|lycoris)_", name) for name in each):
        return (
            "a Kohya (sd-scripts) LoRA of an image generator (keys lora_unet_…, lora_te_…). edgepeft exports adapters of text, "
            "image-classification and audio models; diffusers runs this one: pipeline.load_lora_weights(FILE)"
        )
    if any(
        re.match(r"(unet|text_encoder(_2)?|transformer\.(single_)?(transformer_)?blocks)\..*lora", name)
        for name in each
    ):
        return (
            "a LoRA that diffusers saved for an image generator (keys unet.…, text_encoder.…, transformer.…). edgepeft exports "
            "adapters of text, image-classification and audio models; diffusers runs this one: pipeline.load_lora_weights(FOLDER)"
        )
    if any(name.endswith((".lora_a", ".lora_b")) for name in each):
        return (
            "an MLX adapter (keys ….lora_a and ….lora_b, transposed against PEFT's). Fuse it and export the result as a base: "
            "`mlx_lm.fuse --model BASE --adapter-path FOLDER --save-path MERGED --dequantize`, then "
            "`edgepeft export --model MERGED`"
        )
    return None


def refuse_foreign_config(path: Path, config: Mapping[str, Any]) -> None:
    """:class:`AdapterError` for an ``adapter_config.json`` that another tool than PEFT wrote."""
    if "peft_type" not in config and ("lora_parameters" in config or "fine_tune_type" in config):
        raise AdapterError(f"{path.parent} holds {foreign_keys(['x.lora_a'])}")


def refuse_foreign_tensors(path: Path, names: Iterable[str]) -> None:
    """:class:`AdapterError` for a weights file that holds no adapter in PEFT's layout, which says what it holds."""
    layout = foreign_keys(names)
    if layout is not None:
        raise AdapterError(f"{path} holds {layout}")


def refuse_file(path: Path) -> AdapterError:
    """What to say of a file that was given in place of a folder."""
    whole = f"; give the folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}"
    if path.suffix == ".gguf":
        return AdapterError(
            f"{path} is a GGUF file, llama.cpp's own form of a LoRA. Give the PEFT folder that it was converted from "
            "(convert_lora_to_gguf.py reads one): GGUF keeps neither PEFT's config nor its names"
        )
    if path.suffix == ".safetensors" and (layout := foreign_keys(_keys(path))) is not None:
        return AdapterError(f"{path} is {layout}")
    if path.suffix in {".bin", ".pt", ".pth", ".ckpt"}:
        return AdapterError(
            f"{path} is a pickle, which can run code when it is opened; edgepeft reads safetensors only{whole}"
        )
    return AdapterError(f"{path} is a file{whole}")


def refuse_weightless(path: Path) -> AdapterError:
    """What to say of a folder with ``adapter_config.json`` and without its weights."""
    start = f"{path} holds no {WEIGHTS_NAME}"
    pickle = path / "adapter_model.bin"
    if pickle.is_file():
        return AdapterError(
            f"{pickle} is a pickle, which can run code when it is opened; edgepeft reads safetensors only. Convert it "
            "where you trust it: load it with peft and call save_pretrained(folder, safe_serialization=True)."
        )
    if below := adapters_below(path):
        names = _some(str(each.relative_to(path)) for each in below)
        return AdapterError(f"{start}. Adapters lie below it: {names}. Give one of them, such as {below[-1]}")
    if any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return AdapterError(
            f"{start} but a whole model: the adapter was merged into it. Export it without an adapter: "
            f"`edgepeft export --model {path} --out BUNDLE`"
        )
    return AdapterError(start)


def refuse_folder(path: Path) -> AdapterError:
    """What to say of a folder without ``adapter_config.json``: which adapter below it to give, or what it holds instead."""
    start = f"{path} holds no {CONFIG_NAME}; it is not a PEFT checkpoint"
    below = adapters_below(path)
    if len(below) == 1:
        return AdapterError(f"{start}. An adapter lies below it: give {below[0]}")
    if below:
        names = _some(str(each.relative_to(path)) for each in below)
        return AdapterError(
            f"{start}. {len(below)} adapters lie below it: {names}. Give one of them, such as {below[-1]}"
        )
    try:
        inside = list(path.iterdir())
    except OSError as error:
        return AdapterError(f"{path} cannot be listed: {error}")
    files = {each.name for each in inside if each.is_file()}
    folders = {each.name for each in inside if each.is_dir()}
    keys = [name for file in sorted(files) if file.endswith(".safetensors") for name in _keys(path / file)]
    if (layout := foreign_keys(keys)) is not None:
        return AdapterError(f"{start}. It holds {layout}")
    if any(name.startswith("pytorch_model_fsdp") or name.endswith(".distcp") for name in files | folders):
        return AdapterError(
            f"{start}. It holds shards of FSDP: gather them first with `accelerate merge-weights {path}/pytorch_model_fsdp_0 OUT`, "
            "load that with peft and save the adapter with save_pretrained()"
        )
    if "zero_to_fp32.py" in files or any(name.startswith("global_step") for name in folders):
        return AdapterError(
            f"{start}. It holds shards of DeepSpeed: gather them first with `python zero_to_fp32.py . OUT` in that folder, "
            "load that with peft and save the adapter with save_pretrained()"
        )
    if any(name.endswith(".gguf") for name in files):
        return AdapterError(f"{start}. {refuse_file(path / next(n for n in sorted(files) if n.endswith('.gguf')))}")
    if WEIGHTS_NAME in files:
        return AdapterError(
            f"{start}. {CONFIG_NAME} belongs beside its {WEIGHTS_NAME}: copy it from where the adapter was trained"
        )
    if "config.json" in files:
        return AdapterError(
            f"{start} but a whole model (config.json): an adapter that was merged, or a base. Export it without an adapter: "
            f"`edgepeft export --model {path} --out BUNDLE`"
        )
    return AdapterError(start)
