"""Baking: what changes no weights is traced as PEFT runs it, and computes what PEFT computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from test_methods import (  # noqa: F401 - fixtures and the mark are this module's too
    TOLERANCE,
    difference,
    fake_checkpoint,
    folder,
    peft_logits,
    pytestmark,
    write_checkpoint,
)
from test_methods_bake import BAKED, CAUSAL

from edgepeft import runtime
from edgepeft.adapters.methods.registry import METHODS
from edgepeft.base.samples import bundle_batches
from edgepeft.cli import main
from edgepeft.errors import AdapterError, EdgepeftError, InputError, UnsupportedAdapterError
from edgepeft.pipeline import add, export


def made(folder: Path, out: Path, peft_type: str) -> Path:  # noqa: F811 - the fixture's value
    case = next(case for case in BAKED if case.peft_type == peft_type)
    return write_checkpoint(folder, out, case)


def test_the_cases_are_those_of_the_registry() -> None:
    assert {case.peft_type for case in (*BAKED, *CAUSAL)} == {
        method.peft_type for method in METHODS.values() if method.mode == "bake" or method.virtual
    }


def test_baked_is_peft(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Two adapters in one call: a bundle each."""
    import torch
    from transformers import AutoModelForSequenceClassification

    sources = {name: made(folder, tmp_path / name, name) for name in ("LILY", "PREFIX_TUNING")}
    for name, source in sources.items():
        with pytest.raises(
            UnsupportedAdapterError, match=r"no key/value cache|neither swapped nor merged.*--mode bake"
        ):
            export(folder, {name: source}, tmp_path / "swap", task="text-classification")
    done = export(folder, sources, tmp_path / "baked", mode="bake", task="text-classification")
    assert max(each.max_difference for each in done.parity) <= TOLERANCE
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for name, source in sources.items():
        model = runtime.open(tmp_path / "baked" / name)
        assert (model.manifest.mode, model.manifest.merged, model.adapters) == ("bake", name, ())
        room = 40 - (3 if name == "PREFIX_TUNING" else 0)  # virtual tokens take positions
        assert model.manifest.max_length == room
        full = np.full((1, room), 7, np.int64)
        batches = [
            *bundle_batches(model.bundle),
            {"input_ids": full, "attention_mask": full // 7, "token_type_ids": full * 0},
        ]
        found = [model.forward(batch)["logits"] for batch in batches]
        expected = peft_logits(folder, source, batches)
        with torch.no_grad():
            tensors = [{key: torch.from_numpy(array) for key, array in batch.items()} for batch in batches]
            without = [plain(**each).logits.numpy() for each in tensors]
        assert difference(found, expected) <= TOLERANCE
        assert difference(without, expected) > 20 * TOLERANCE, "the adapter must change the output"
        assert np.array_equal(model.use(name).forward(batches[0])["logits"], found[0])
    with pytest.raises(InputError, match="has no slots"):
        add(tmp_path / "baked" / "LILY", "b", sources["LILY"])


def test_what_cannot_be_baked_says_why(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    failed = call(
        "export", "--model", folder, "--out", tmp_path / "b", "--mode", "bake", "--task", "text-classification"
    )
    assert failed.exit_code == 2
    assert "--mode bake needs at least one --adapter" in failed.stderr
    damaged = fake_checkpoint(tmp_path / "damaged", "PROMPT_TUNING", num_virtual_tokens=3, task_type="SEQ_CLS")
    with pytest.raises(AdapterError, match="PEFT cannot load"):
        export(folder, {"a": damaged}, tmp_path / "b", mode="bake", task="text-classification")
    (damaged / "adapter_config.json").write_text(json.dumps({"peft_type": "NOBODY"}))
    with pytest.raises(EdgepeftError, match="NOBODY"):
        export(folder, {"a": damaged}, tmp_path / "b", mode="bake", task="text-classification")
    # PEFT passes over tensors whose modules it does not find; a bundle without them would be the base in disguise.
    strange = write_checkpoint(folder, tmp_path / "strange", BAKED[0])
    tensors = load_file(strange / "adapter_model.safetensors")
    save_file(
        {name.replace("query", "quarry"): tensor for name, tensor in tensors.items()},
        strange / "adapter_model.safetensors",
    )
    with pytest.raises(AdapterError, match=r"PEFT did not take \d+ tensor\(s\) of the LILY checkpoint, .*quarry"):
        export(folder, {"a": strange}, tmp_path / "b", mode="bake", task="text-classification")
    assert not (tmp_path / "b").exists()
