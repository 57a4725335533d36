"""A checkpoint is read once: each file of an adapter is opened once, and the base as often as loading it once takes.

Opens are counted by the kernel (inotify), so that those of the libraries underneath count too.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Models, randomize

from edgepeft.adapters.checkpoint import CONFIG_NAME, RECORD_NAME, WEIGHTS_NAME, read_checkpoint
from edgepeft.adapters.through_peft.load import peft_over
from edgepeft.pipeline import add, export

_IN_OPEN, _IN_NONBLOCK = 0x20, 0o4000


@contextmanager
def opens(*folders: Path) -> Iterator[Counter[str]]:
    """Counts opens of files in ``folders`` as ``folder/file``; complete when the block has ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(_IN_NONBLOCK)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    counts: Counter[str] = Counter()
    try:
        watched = {libc.inotify_add_watch(descriptor, os.fsencode(f), _IN_OPEN): f.name for f in folders}
        yield counts
        with open(descriptor, "rb", closefd=False) as events:
            data = events.read() or b""
        at = 0
        while at < len(data):
            watch, _, _, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16 : at + 16 + length].rstrip(b"\0").decode()
            if name:  # opens of the folder itself have none
                counts[f"{watched[watch]}/{name}"] += 1
            at += 16 + length
    finally:
        os.close(descriptor)


linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify counts the opens")


def _shards(counts: Counter[str]) -> Counter[str]:
    return Counter({name: count for name, count in counts.items() if name.endswith("model.safetensors")})


def _loaded_once(model: Path) -> Counter[str]:
    """How often the base's weights are opened to load it once."""
    from edgepeft.base.load import load_model

    with opens(model) as counts:
        load_model(model, task="text-classification")
    assert _shards(counts)
    return _shards(counts)


def _fourier(folder: Path, model: Path) -> Path:
    """A method that is lowered through PEFT, with a trained head: PEFT loads it twice, to lower it and to compare."""
    from peft import FourierFTConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    wrapped = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(model),
        FourierFTConfig(task_type="SEQ_CLS", n_frequency=3, target_modules=["query"]),
    )
    randomize(wrapped, 3)
    wrapped.save_pretrained(folder)
    return folder


@linux
@pytest.mark.parametrize("mode", ["swap", "merge", "bake"])
def test_export_reads_each_checkpoint_once(
    mode: Any, models: Models, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = models("bert")
    given = {"head": checkpoints["head"]}
    if mode != "bake":  # tracing takes seconds, and each baked adapter is a base of its own
        given |= {"dora": checkpoints["dora"], "fourier": _fourier(tmp_path / "fourier", model)}
    once = _loaded_once(model)
    with opens(model, *given.values()) as counts:
        export(model, given, tmp_path / "bundle", mode=mode)
    for folder in given.values():
        files = {path.name for path in folder.iterdir()} & {WEIGHTS_NAME, CONFIG_NAME, RECORD_NAME}
        assert {name: counts[f"{folder.name}/{name}"] for name in files} == dict.fromkeys(files, 1)
    base_only = Counter({name: count for name, count in counts.items() if name.startswith(f"{model.name}/")})
    assert _shards(base_only) == once


@linux
def test_add_reads_the_checkpoint_once_and_not_the_base(
    models: Models, checkpoints: dict[str, Path], own_bundle: Path
) -> None:
    """DoRA's lowering needs the base's weights; the bundle has them."""
    with opens(models("bert"), checkpoints["dora"]) as counts:
        add(own_bundle, "late", checkpoints["dora"])
    assert counts[f"dora/{WEIGHTS_NAME}"] == counts[f"dora/{CONFIG_NAME}"] == 1
    assert not _shards(Counter({n: c for n, c in counts.items() if n.startswith(f"{models('bert').name}/")}))


@linux
def test_add_through_peft_reads_the_base_once(models: Models, own_bundle: Path, tmp_path: Path) -> None:
    model = models("bert")
    source, once = _fourier(tmp_path / "fourier", model), _loaded_once(model)
    with opens(model, source) as counts:
        add(own_bundle, "late", source)
    assert counts[f"fourier/{WEIGHTS_NAME}"] == counts[f"fourier/{CONFIG_NAME}"] == 1
    assert _shards(Counter({n: c for n, c in counts.items() if n.startswith(f"{model.name}/")})) == once


def _configs() -> dict[str, Any]:
    import peft

    sites = {"target_modules": ["query", "value"]}
    task = {"task_type": "SEQ_CLS"}
    return {
        "lora": peft.LoraConfig(r=3, **sites, **task),
        "lora without a task type": peft.LoraConfig(r=3, **sites),
        "pissa": peft.LoraConfig(r=3, init_lora_weights="pissa", **sites, **task),
        "dora with trained biases": peft.LoraConfig(r=3, use_dora=True, bias="all", **sites, **task),
        "trained tokens": peft.LoraConfig(r=3, trainable_token_indices=[3, 5], **sites, **task),
        "adalora": peft.AdaLoraConfig(init_r=3, total_step=4, **sites, **task),
        "ia3": peft.IA3Config(feedforward_modules=[], **sites, **task),
        "vera": peft.VeraConfig(r=3, **sites, **task),
        "vblora": peft.VBLoRAConfig(r=2, num_vectors=12, vector_length=8, save_only_topk_weights=True, **sites, **task),
        "fourierft": peft.FourierFTConfig(n_frequency=3, **sites, **task),
        "shira": peft.ShiraConfig(r=2, **sites, **task),
        "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=3, **task),
        "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **task),
        "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=3, **task),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", list(_configs()))
def test_peft_over_is_what_peft_loads_from_the_folder(name: str, models: Models, tmp_path: Path) -> None:
    """Every number of the model, the base's included (PiSSA changes it): the same bits as ``PeftModel.from_pretrained``."""
    import torch
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification

    def base() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(models("bert"))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(base(), _configs()[name])
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        wrapped.save_pretrained(tmp_path / "a")
        torch.manual_seed(1)
        theirs = PeftModel.from_pretrained(base(), tmp_path / "a").eval()
        torch.manual_seed(1)
        mine = peft_over(base(), read_checkpoint(tmp_path / "a"))
    assert type(mine) is type(theirs)
    assert not mine.training
    assert not any(module.training for module in mine.modules())
    expected, found = theirs.state_dict(), mine.state_dict()
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert {key: tensor.dtype for key, tensor in found.items()} == {key: t.dtype for key, t in expected.items()}
    ids = torch.arange(12).reshape(2, 6) + 4
    with torch.no_grad():
        assert torch.equal(mine(input_ids=ids).logits, theirs(input_ids=ids).logits)
