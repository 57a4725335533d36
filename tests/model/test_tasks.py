"""Checkpoints that hold several tasks: each is an adapter of its own, named ``PATH#task=N``."""

# ruff: noqa: F811 - the fixtures of test_methods.py are this module's too
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_methods import (  # noqa: F401 - so is its mark
    TOLERANCE,
    Case,
    _case,
    base,
    batches,
    difference,
    folder,
    peft_logits,
    pytestmark,
    write_checkpoint,
)

from edgepeft import runtime
from edgepeft.adapters.checkpoint import read_checkpoint, split_task
from edgepeft.adapters.describe import describe_adapter
from edgepeft.adapters.read import read_adapter
from edgepeft.base.base import Base
from edgepeft.cli import main
from edgepeft.errors import InputError
from edgepeft.pipeline import add_slots, write_bundle
from edgepeft.validate.parity import adapter_sources


@pytest.fixture(scope="module")
def poly(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three tasks."""
    case: Case = _case("POLY", r=3, n_tasks=3, n_skills=4, n_splits=1, scale=0.5)
    return write_checkpoint(folder, tmp_path_factory.mktemp("poly") / "poly", case)


def test_a_source_and_its_task(tmp_path: Path) -> None:
    assert split_task("some/adapter#task=12") == ("some/adapter", 12)
    assert split_task(tmp_path) == (str(tmp_path), None)
    literal = tmp_path / "a#task=x"
    literal.mkdir()
    assert split_task(literal) == (str(literal), None)
    for wrong in ("a#task=", "a#task=-1", "a#task=two"):
        with pytest.raises(InputError, match=r"after #task= stands the number of one task .*a#task=0"):
            split_task(wrong)


def test_the_tasks_of_one_checkpoint_in_one_bundle(
    poly: Path,
    folder: Path,
    base: Base,
    batches: list[dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    """Three adapters that differ, each what PEFT computes with that task id; one is added later, without torch."""
    sources = {f"task{task}": f"{poly}#task={task}" for task in range(3)}
    adapters = [read_adapter(sources[name], name=name, weights=base.weight) for name in ("task0", "task1")]
    bundle = write_bundle(tmp_path / "bundle", base, add_slots(base, adapters), adapters)
    added = CliRunner().invoke(main, ["add", str(bundle.path), "--adapter", f"task2={sources['task2']}", "--force"])
    assert added.exit_code == 0, added.output
    opened = runtime.open(bundle.path)
    assert {name: entry.source for name, entry in opened.manifest.adapters.items()} == sources
    assert adapter_sources(opened.bundle, {}) == sources
    found = {name: [opened.use(name).forward(batch)["logits"] for batch in batches] for name in sources}
    for name, source in sources.items():
        assert difference(found[name], peft_logits(folder, Path(source), batches)) <= TOLERANCE
    assert min(difference(found[a], found[b]) for a, b in (("task0", "task1"), ("task1", "task2"))) > 20 * TOLERANCE


def test_a_task_must_be_named_and_be_there(poly: Path, folder: Path, base: Base, tmp_path: Path) -> None:
    def read(source: Path | str) -> Any:
        return read_adapter(source, name="a", weights=base.weight)

    said = r"POLY holds 3 tasks, and each is an adapter of its own\. Name one: \S+poly#task=N, N from 0 to 2"
    with pytest.raises(InputError, match=said):
        read(poly)
    with pytest.raises(InputError, match=r"it has no task 3\. Name one"):
        read(f"{poly}#task=3")
    lora = write_checkpoint(folder, tmp_path / "lora", _case("LORA", r=2))
    with pytest.raises(InputError, match=r"LORA holds one adapter and no tasks; leave out #task=0"):
        read(f"{lora}#task=0")
    failed = CliRunner().invoke(
        main, ["export", "--model", str(folder), "--adapter", f"a={poly}", "--out", str(tmp_path / "b"), "--mode", "bake",
               "--task", "text-classification"],
    )  # fmt: skip
    assert failed.exit_code == 2
    assert "Name one: " in failed.stderr


def test_what_inspect_says(poly: Path) -> None:
    assert describe_adapter(poly).notes == (f"it holds 3 tasks, each of which is an adapter of its own: {poly}#task=N",)
    assert describe_adapter(f"{poly}#task=1").notes == ()
    shown = CliRunner().invoke(main, ["inspect", f"{poly}#task=1", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["plan"]["mode"] == "swap"
    assert "it holds 3 tasks" in CliRunner().invoke(main, ["inspect", str(poly)]).output


def test_a_damaged_router(poly: Path, base: Base, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    from edgepeft.errors import AdapterError

    copy = shutil.copytree(poly, tmp_path / "copy")
    tensors = load_file(copy / "adapter_model.safetensors")
    name = next(key for key in sorted(tensors) if key.endswith("module_logits"))
    save_file({**tensors, name: tensors[name][:2]}, copy / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"router \(2, 4\) do not fit each other or task 1"):
        read_adapter(f"{copy}#task=1", name="a", weights=base.weight)
    assert read_checkpoint(f"{copy}#task=1").task == 1
