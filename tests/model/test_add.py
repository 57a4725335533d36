"""``add`` and ``remove``: adapters into a bundle that exists, without torch, and every refusal."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Bases, Models, all_equal, ragged, save_lora

from edgepeft import runtime
from edgepeft.adapters.files import read_adapter_onnx, read_onnx_adapter
from edgepeft.bundle import read_bundle
from edgepeft.errors import AdapterError, AdapterMismatchError, EdgepeftError, InputError, UnknownAdapterError
from edgepeft.pipeline import add, add_slots, read_adapter, remove, write_bundle


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def tight(bases: Bases, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with slots for ``plain`` only (q/k/v)."""
    base = bases("bert")
    adapter = read_adapter(checkpoints["plain"], name="plain", weights=base.weight)
    return write_bundle(tmp_path_factory.mktemp("tight") / "b", base, add_slots(base, [adapter]), [adapter]).path


@pytest.fixture
def own_tight(tight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tight, tmp_path / "tight"))


@pytest.mark.parametrize("name", ["plain", "head", "dora"])
def test_added_from_a_checkpoint_is_what_export_wrote(
    name: str, own_bundle: Path, bundle: Path, checkpoints: dict[str, Path]
) -> None:
    """DoRA and heads included, with the base's weights read back out of the bundle: the same bits."""
    added = add(own_bundle, "again", checkpoints[name])
    assert added.changes_output
    for suffix in ("onnx", "onnx_adapter"):
        first, second = bundle / "adapters" / f"{name}.{suffix}", own_bundle / "adapters" / f"again.{suffix}"
        read = (lambda p: read_adapter_onnx(p).tensors) if suffix == "onnx" else (lambda p: read_onnx_adapter(p)[0])
        assert all_equal(read(first), read(second))
    before, after = read_bundle(bundle).manifest, read_bundle(own_bundle).manifest
    entry = after.adapters["again"].model_dump(exclude={"onnx", "onnx_adapter"})
    assert entry == before.adapters[name].model_dump(exclude={"onnx", "onnx_adapter"})
    assert {**before.adapters, "again": after.adapters["again"]} == after.adapters
    added.bundle.verify()
    assert sorted(set(snapshot(own_bundle)) - set(snapshot(bundle))) == [
        "adapters/again.onnx",
        "adapters/again.onnx_adapter",
    ]


@pytest.mark.parametrize("suffix", ["onnx", "onnx_adapter"])
def test_added_from_an_exported_file(suffix: str, own_bundle: Path, bundle: Path, bases: Bases) -> None:
    add(own_bundle, "again", bundle / "adapters" / f"head.{suffix}")
    inputs = ragged(bases("bert"))[0]
    opened = runtime.open(own_bundle)
    assert all_equal(opened.use("again").forward(inputs), opened.use("head").forward(inputs))
    assert opened.use("again").labels == ("a", "b", "c", "d", "e")


def test_does_not_import_torch(own_bundle: Path, checkpoints: dict[str, Path]) -> None:
    code = (
        "import sys; from edgepeft.pipeline import add; add(sys.argv[1], 'again', sys.argv[2]);"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'peft', 'onnxscript'}))"
    )
    args = [sys.executable, "-c", code, str(own_bundle), str(checkpoints["dora"])]
    assert subprocess.run(args, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_replace(own_bundle: Path, checkpoints: dict[str, Path], bases: Bases) -> None:
    before = snapshot(own_bundle)
    with pytest.raises(InputError, match=r"already has an adapter 'plain'.*--replace"):
        add(own_bundle, "plain", checkpoints["head"])
    assert snapshot(own_bundle) == before
    opened = runtime.open(own_bundle).use("plain")
    inputs = ragged(bases("bert"))[0]
    running = opened.forward(inputs)
    add(own_bundle, "plain", checkpoints["head"], replace=True)
    # A runtime that was opened before goes on with what it mapped.
    assert all_equal(opened.forward(inputs), running)
    assert runtime.open(own_bundle).use("plain").forward(inputs)["logits"].shape == (2, 5)


def test_remove(own_bundle: Path, bundle: Path) -> None:
    removed = remove(own_bundle, "head")
    assert list(removed.bundle.manifest.adapters) == ["plain", "dora"]
    assert set(snapshot(bundle)) - set(snapshot(own_bundle)) == {"adapters/head.onnx", "adapters/head.onnx_adapter"}
    removed.bundle.verify()
    with pytest.raises(UnknownAdapterError):
        remove(own_bundle, "head")


def test_an_adapter_that_does_nothing_is_told(own_bundle: Path, checkpoints: dict[str, Path]) -> None:
    assert not add(own_bundle, "untrained", checkpoints["untrained"]).changes_output


class TestRefused:
    """Every refusal leaves the bundle as it was, byte for byte."""

    def check(self, folder: Path, source: Path, error: type[EdgepeftError], words: str, name: str = "new") -> None:
        before = snapshot(folder)
        with pytest.raises(error, match=words):
            add(folder, name, source)
        assert snapshot(folder) == before
        assert not [p for p in folder.parent.iterdir() if p.name.startswith(f".{folder.name}")]

    def test_no_slot(self, own_tight: Path, checkpoints: dict[str, Path]) -> None:
        self.check(own_tight, checkpoints["head"], AdapterMismatchError, r"classifier.*no slot.*--slots all-linear")

    def test_dora_needs_a_gain_slot(self, own_tight: Path, checkpoints: dict[str, Path]) -> None:
        self.check(own_tight, checkpoints["dora"], AdapterMismatchError, r"DoRA.*no gain slot.*Export the base again")

    def test_file_of_other_slots(self, own_tight: Path, bundle: Path) -> None:
        self.check(own_tight, bundle / "adapters" / "plain.onnx", AdapterMismatchError, "exported for slot schema")

    def test_file_of_another_base(self, own_bundle: Path, models: Models, bases: Bases, tmp_path: Path) -> None:
        """The same sizes, other weights."""
        other = bases("bert", default_init=True)
        checkpoint = save_lora(tmp_path / "a", models("bert", default_init=True))
        adapter = read_adapter(checkpoint, name="x", weights=other.weight)
        written = write_bundle(tmp_path / "o", other, add_slots(other, [adapter], reserve="all-linear"), [adapter])
        self.check(
            own_bundle,
            written.file("adapters/x.onnx"),
            AdapterMismatchError,
            r"exported for base identity.*another base",
        )

    def test_checkpoint_with_another_identity(self, own_bundle: Path, models: Models, tmp_path: Path) -> None:
        source = save_lora(tmp_path / "a", models("bert"), record={"base_identity": "0" * 64})
        self.check(own_bundle, source, AdapterMismatchError, "identity 0000")
        with pytest.raises(AdapterMismatchError, match="identity 0000"):
            add(own_bundle, "new", source, force=True)  # no force makes the numbers right

    def test_checkpoint_of_other_sizes(self, own_bundle: Path, models: Models, tmp_path: Path) -> None:
        wide = models("bert", sizes=(("hidden_size", 64),))
        source = save_lora(tmp_path / "a", wide)
        with pytest.raises(AdapterMismatchError, match="in size is 64, the base's is 32"):
            add(own_bundle, "new", source, force=True)
        self.check(own_bundle, source, AdapterMismatchError, "--force")

    @pytest.mark.parametrize("labels", [["a", "b"], ["a"] * 6])
    def test_label_count(self, labels: list[str], own_bundle: Path, models: Models, tmp_path: Path) -> None:
        source = save_lora(
            tmp_path / "a", models("bert"), modules_to_save=["classifier"], num_labels=5, record={"labels": labels}
        )
        self.check(own_bundle, source, AdapterMismatchError, f"head has 5 labels, its record names {len(labels)}")

    def test_damaged_files(self, own_bundle: Path, bundle: Path, tmp_path: Path) -> None:
        for suffix in ("onnx", "onnx_adapter"):
            shutil.copyfile(bundle / "adapters" / f"head.{suffix}", tmp_path / f"x.{suffix}")
        good = (tmp_path / "x.onnx").read_bytes()
        (tmp_path / "x.onnx").write_bytes(good[: len(good) // 2])
        self.check(own_bundle, tmp_path / "x.onnx", AdapterError, "truncated or damaged|not an adapter")
        (tmp_path / "x.onnx").write_bytes(good)
        adapter = tmp_path / "x.onnx_adapter"
        adapter.write_bytes(adapter.read_bytes()[:500])
        self.check(own_bundle, adapter, AdapterError, "truncated or damaged")
        shutil.copyfile(bundle / "adapters" / "plain.onnx_adapter", adapter)
        self.check(own_bundle, adapter, AdapterError, "two different adapters")
        (tmp_path / "x.onnx").unlink()
        self.check(own_bundle, adapter, AdapterError, "carries no contract")
        self.check(own_bundle, tmp_path / "x.onnx", InputError, "no file at")

    def test_a_model_is_not_an_adapter(self, own_bundle: Path, bundle: Path) -> None:
        self.check(own_bundle, bundle / "onnx" / "model.onnx", AdapterError, "not an adapter that edgepeft exported")

    def test_bad_name(self, own_bundle: Path, checkpoints: dict[str, Path]) -> None:
        self.check(own_bundle, checkpoints["plain"], InputError, "cannot be a name", name="../x")

    def test_infinite_outputs(self, own_bundle: Path, models: Models, tmp_path: Path) -> None:
        source = save_lora(tmp_path / "a", models("bert"), scale=1e30)
        self.check(own_bundle, source, AdapterError, "NaN or infinite")


def test_foreign_base_name_needs_force(own_bundle: Path, models: Models, tmp_path: Path) -> None:
    import json

    source = save_lora(tmp_path / "a", models("bert"))
    path = source / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "someone/else"}))
    with pytest.raises(AdapterMismatchError, match=r"someone/else.*--force"):
        add(own_bundle, "new", source)
    said: list[str] = []
    add(own_bundle, "new", source, force=True, announce=said.append)
    assert any("someone/else" in message and "--force" in message for message in said)


def test_reserved_slots_take_an_adapter_to_come(
    bases: Bases, models: Models, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Slots at every linear site, no adapter at export. Reference: PEFT; 1e-4 as everywhere."""
    from edgepeft.base.parity import reference_outputs
    from edgepeft.validate.reference import peft_model

    base = bases("bert")
    target = write_bundle(tmp_path / "b", base, add_slots(base, reserve="all-linear")).path
    add(target, "head", checkpoints["head"])
    inputs = ragged(base)[1]
    expected = reference_outputs(
        peft_model(str(models("bert")), checkpoints["head"], task=base.task, num_labels=5), inputs, ["logits"]
    )
    found = runtime.open(target).use("head").forward(inputs)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4)
