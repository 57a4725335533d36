"""Baking: what changes no weights is traced as PEFT runs it, and computes what PEFT computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_methods import (  # noqa: F401 - fixtures and the mark are this module's too
    TOLERANCE,
    _case,
    difference,
    fake_checkpoint,
    folder,
    peft_logits,
    pytestmark,
    write_checkpoint,
)

from edgepeft import runtime
from edgepeft.adapters.registry import METHODS
from edgepeft.base.ragged import bundle_batches
from edgepeft.cli import main
from edgepeft.errors import AdapterError, EdgepeftError, InputError, UnsupportedAdapterError
from edgepeft.pipeline import add, export

BAKED = {
    "LILY": {"r": 4, "scale": 0.3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3, "scale": 1.0},
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 16, "scale": 1.0},
}


def made(folder: Path, out: Path, peft_type: str) -> Path:  # noqa: F811 - the fixture's value
    case = _case(peft_type, "bake", **BAKED[peft_type])
    if peft_type != "LILY":  # prompts name no modules
        for option in ("target_modules", "modules_to_save"):
            case.options.pop(option)
    return write_checkpoint(folder, out, case)


def test_the_cases_are_those_of_the_registry() -> None:
    assert set(BAKED) == {method.peft_type for method in METHODS.values() if method.mode == "bake"}


@pytest.mark.parametrize("peft_type", list(BAKED))
def test_baked_is_peft(peft_type: str, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    source = made(folder, tmp_path / "a", peft_type)
    with pytest.raises(UnsupportedAdapterError, match=r"neither swapped nor merged.*--mode bake"):
        export(folder, {"a": source}, tmp_path / "swap", task="text-classification")
    done = export(folder, {"a": source}, tmp_path / "baked", mode="bake", task="text-classification")
    assert done.parity[0].max_difference <= TOLERANCE
    model = runtime.open(tmp_path / "baked")
    assert (model.manifest.mode, model.manifest.merged, model.adapters) == ("bake", "a", ())
    batches = bundle_batches(model.bundle)
    found = [model.forward(batch)["logits"] for batch in batches]
    expected = peft_logits(folder, source, batches)
    plain = export(folder, {}, tmp_path / "plain", task="text-classification").bundles[0]
    without = [runtime.open(plain.path).forward(batch)["logits"] for batch in batches]
    assert difference(found, expected) <= TOLERANCE
    assert difference(without, expected) > 20 * TOLERANCE, (
        "the adapter must change the output, or the test shows nothing"
    )
    assert np.array_equal(model.use("a").forward(batches[0])["logits"], found[0])
    with pytest.raises(InputError, match="has no slots"):
        add(tmp_path / "baked", "b", source)


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
    assert not (tmp_path / "b").exists()
