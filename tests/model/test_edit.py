"""``edit``: what another process did between reading a bundle and changing it is kept, or the change is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Bases

from edgepeft import runtime
from edgepeft.bundle import locked, read_bundle
from edgepeft.errors import (
    AdapterMismatchError,
    BundleError,
    BusyBundleError,
    CorruptBundleError,
    InputError,
    UnknownAdapterError,
)
from edgepeft.pipeline import (
    _add,
    _edit,
    _quantize,
    add,
    add_slots,
    blend,
    quantize,
    read_adapter,
    remove,
    write_bundle,
    write_input_style,
)
from edgepeft.pipeline._edit import copy_files, edit
from edgepeft.pipeline._write import write_bundle as write


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def once(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, then: Callable[[], object]) -> None:
    """Have ``then`` done once, by another writer as it were, right after ``module.name`` ran the first time."""
    function, left = getattr(module, name), [then]

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if left:
            left.pop()()
        return result

    monkeypatch.setattr(module, name, wrapper)


def other_base(folder: Path, bases: Bases, checkpoint: Path) -> None:
    """A bundle of the same sizes and other weights in the place of ``folder``."""
    base = bases("bert", default_init=True)
    adapter = read_adapter(checkpoint, name="x", weights=base.weight)
    write_bundle(folder, base, add_slots(base, [adapter], reserve="all-linear"), [adapter])


class TestNothingIsLost:
    def test_an_adapter_added_while_another_was_read(
        self, own_bundle: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        once(monkeypatch, _add, "read_adapter", lambda: add(own_bundle, "second", checkpoints["dora"]))
        add(own_bundle, "first", checkpoints["plain"])
        assert list(read_bundle(own_bundle).manifest.adapters) == ["plain", "head", "dora", "second", "first"]
        read_bundle(own_bundle).verify()
        for name in ("first", "second"):
            runtime.open(own_bundle).use(name)

    def test_an_adapter_added_and_one_removed_while_it_was_quantized(
        self, own_bundle: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def others() -> None:
            add(own_bundle, "late", checkpoints["head"])
            remove(own_bundle, "dora")

        once(monkeypatch, _quantize, "count_quantized", others)
        done = quantize(own_bundle, "int8")
        assert list(done.bundle.manifest.adapters) == ["plain", "head", "late"]
        assert list(done.bundle.manifest.variants) == ["fp32", "int8"]
        read_bundle(own_bundle).verify()
        runtime.open(own_bundle, variant="int8").use("late")

    def test_the_same_name_twice_is_told_to_the_second(
        self, own_bundle: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        once(monkeypatch, _add, "read_adapter", lambda: add(own_bundle, "new", checkpoints["dora"]))
        with pytest.raises(InputError, match=r"own already has an adapter 'new'"):
            add(own_bundle, "new", checkpoints["plain"])
        found = read_bundle(own_bundle).manifest.adapters
        assert found["new"].tensors == found["dora"].tensors != found["plain"].tensors, "the first one stays"
        read_bundle(own_bundle).verify()

    def test_the_same_variant_twice_is_told_to_the_second(
        self, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        once(monkeypatch, _quantize, "_make", lambda: quantize(own_bundle, "int8"))
        with pytest.raises(InputError, match=r"own already has a variant 'int8'"):
            quantize(own_bundle, "int8")
        read_bundle(own_bundle).verify()
        quantize(own_bundle, "int8", replace=True)


class TestAnotherBase:
    """Exported again meanwhile: the result of the old base must not come into the new bundle."""

    def test_add(
        self, own_bundle: Path, checkpoints: dict[str, Path], bases: Bases, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        once(monkeypatch, _add, "read_adapter", lambda: other_base(own_bundle, bases, checkpoints["plain"]))
        with pytest.raises(
            AdapterMismatchError, match=r"exported again while adapter 'new' was being read: its base was"
        ):
            add(own_bundle, "new", checkpoints["plain"])
        assert list(read_bundle(own_bundle).manifest.adapters) == ["x"]

    def test_quantize(
        self, own_bundle: Path, checkpoints: dict[str, Path], bases: Bases, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        once(monkeypatch, _quantize, "_make", lambda: other_base(own_bundle, bases, checkpoints["plain"]))
        with pytest.raises(AdapterMismatchError, match="exported again while it was being quantized"):
            quantize(own_bundle, "int8")
        assert list(read_bundle(own_bundle).manifest.variants) == ["fp32"]

    def test_other_bytes_of_the_same_base(self, own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As where ``web prepare`` moves weights out of a graph: the same base in other files."""

        def rewrite() -> None:
            with edit(own_bundle) as change:
                data = change.manifest.variants["fp32"].data[0]
                path = change.folder / data
                path.write_bytes(path.read_bytes() + bytes(16))
                change.stage(written=[data])

        once(monkeypatch, _quantize, "_make", rewrite)
        with pytest.raises(BundleError, match=r"onnx/model\.onnx_data was changed while it was being quantized"):
            quantize(own_bundle, "int8")


class TestEveryWriterWaits:
    """And says so when the time is over; the bundle is as it was."""

    @pytest.mark.parametrize("command", ["add", "remove", "variant", "blend", "quantize", "web", "write"])
    def test_busy(self, command: str, own_bundle: Path, checkpoints: dict[str, Path], bases: Bases) -> None:
        def again() -> object:
            base = bases("bert")
            adapter = read_adapter(checkpoints["plain"], name="plain", weights=base.weight)
            return write(own_bundle, base, add_slots(base, [adapter]), [adapter], lock_timeout=0)

        quantize(own_bundle, "int8")
        before = snapshot(own_bundle)
        change: dict[str, Callable[[], object]] = {
            "add": lambda: add(own_bundle, "new", checkpoints["plain"], lock_timeout=0),
            "remove": lambda: remove(own_bundle, "plain", lock_timeout=0),
            "variant": lambda: remove(own_bundle, variant="int8", lock_timeout=0),
            "blend": lambda: blend(own_bundle, {"plain": 1.0}, "new", lock_timeout=0),
            "quantize": lambda: quantize(own_bundle, "int8", replace=True, lock_timeout=0),
            "web": lambda: write_input_style(own_bundle, lock_timeout=0),
            "write": again,
        }
        with locked(own_bundle), pytest.raises(BusyBundleError, match=r"/own is being changed by another process"):
            change[command]()
        assert snapshot(own_bundle) == before
        assert [path.name for path in own_bundle.parent.iterdir()] == ["own"]

    def test_threads_of_one_process(self, own_bundle: Path, checkpoints: dict[str, Path]) -> None:
        import threading

        failed: list[Exception] = []

        def work(name: str) -> None:
            try:
                add(own_bundle, name, checkpoints["plain"])
            except Exception as error:
                failed.append(error)

        names = [f"new-{i}" for i in range(4)]
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert set(names) < set(read_bundle(own_bundle).manifest.adapters)


class TestEdit:
    def test_only_what_was_written_is_hashed(self, own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from edgepeft.pipeline import _manifest

        hashed: list[str] = []
        hash_file = _manifest.hash_file

        def counting(path: Path) -> Any:
            hashed.append(path.name)
            return hash_file(path)

        monkeypatch.setattr(_manifest, "hash_file", counting)
        with edit(own_bundle) as change:
            (change.folder / "adapters" / "note.txt").write_text("x")
            change.stage(provenance={**change.manifest.provenance, "note": 1})
        assert hashed == ["note.txt"]
        assert read_bundle(own_bundle).manifest.provenance["note"] == 1
        read_bundle(own_bundle).verify()

    def test_nothing_is_copied_where_nothing_is_written(
        self, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_edit, "replacing", None)
        inode = own_bundle.stat().st_ino
        with edit(own_bundle) as change:
            assert list(change.manifest.adapters) == ["plain", "head", "dora"]
        with pytest.raises(UnknownAdapterError):
            remove(own_bundle, "nope")
        assert own_bundle.stat().st_ino == inode

    def test_no_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="no bundle at"):
            remove(tmp_path / "nothing", "x")
        assert list(tmp_path.iterdir()) == [], "and no lock beside it"

    def test_from_inside_the_bundle(
        self, own_bundle: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(own_bundle)
        add(".", "new", checkpoints["plain"])
        monkeypatch.chdir(own_bundle)  # the folder was exchanged
        assert runtime.open(".").use("new").active == "new"
        remove(Path(), "new")
        with pytest.raises(BundleError, match="current folder was removed or replaced"):
            runtime.open(".")

    def test_a_copy_is_verified(self, own_bundle: Path, tmp_path: Path) -> None:
        path = own_bundle / read_bundle(own_bundle).manifest.variants["fp32"].data[0]
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptBundleError, match=r"own/onnx/model\.onnx_data was changed"):
            copy_files(own_bundle, tmp_path / "copy", lambda manifest: manifest.files)

    def test_input_style_and_quantization_come_together(
        self, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Quantizing again what has a graph for the web: where that fails, the old variant stays with its graph."""
        quantize(own_bundle, "int8")
        write_input_style(own_bundle, "int8")
        before = snapshot(own_bundle)

        def fail(*args: object) -> None:
            raise BundleError("no")

        monkeypatch.setattr(_quantize, "add_input_style", fail)
        with pytest.raises(BundleError, match="no"):
            quantize(own_bundle, "int8", replace=True)
        assert snapshot(own_bundle) == before


class TestRemoveVariant:
    def test_with_its_files(self, own_bundle: Path) -> None:
        before = snapshot(own_bundle)
        quantize(own_bundle, "int8")
        write_input_style(own_bundle, "int8")
        assert (own_bundle / "onnx/defaults.onnx_adapter").is_file()
        made = read_bundle(own_bundle).manifest
        done = remove(own_bundle, variant="int8")
        assert set(done.files) == {*made.variants["int8"].files(), "onnx/defaults.onnx_adapter"}
        assert done.bytes == sum(made.files[name].bytes for name in done.files)
        after = snapshot(own_bundle)
        assert json.loads(after.pop("edgepeft.json")) == json.loads(before.pop("edgepeft.json"))
        assert after == before, "as it was before it was quantized, config.json included"

    def test_the_defaults_stay_where_another_graph_feeds_them(self, own_bundle: Path) -> None:
        quantize(own_bundle, "int8")
        write_input_style(own_bundle)
        remove(own_bundle, variant="int8")
        bundle = read_bundle(own_bundle)
        bundle.verify()
        assert bundle.manifest.slot_defaults == "onnx/defaults.onnx_adapter"

    def test_the_only_one(self, own_bundle: Path) -> None:
        before = snapshot(own_bundle)
        with pytest.raises(BundleError, match=r"fp32 is the only variant of .*own"):
            remove(own_bundle, variant="fp32")
        with pytest.raises(BundleError, match=r"has no variant 'q4'; it has: fp32"):
            remove(own_bundle, variant="q4")
        assert snapshot(own_bundle) == before

    def test_what_was_quantized_from_stays_usable_alone(self, own_bundle: Path) -> None:
        quantize(own_bundle, "int8")
        remove(own_bundle, variant="fp32")
        assert runtime.open(own_bundle).variant == "int8"
        with pytest.raises(BundleError, match="no fp32 variant to quantize, only int8"):
            quantize(own_bundle, "q4")

    def test_shared_weights(self, own_bundle: Path) -> None:
        """As a manifest made elsewhere may say: two graphs over one weights file."""
        with edit(own_bundle) as change:
            whole = change.manifest.variants["fp32"]
            shutil.copyfile(change.folder / whole.file, change.folder / "onnx/model_twin.onnx")
            twin = whole.model_copy(update={"file": "onnx/model_twin.onnx"})
            change.stage(variants={**change.manifest.variants, "twin": twin})
        before = snapshot(own_bundle)
        with pytest.raises(
            BundleError, match=r"twin of .* cannot be removed: onnx/model\.onnx_data belongs to fp32 too"
        ):
            remove(own_bundle, variant="twin")
        assert snapshot(own_bundle) == before

    def test_neither_and_both(self, own_bundle: Path) -> None:
        for arguments in ({}, {"adapter": "plain", "variant": "fp32"}):
            with pytest.raises(InputError, match="name what to remove"):
                remove(own_bundle, **arguments)


def test_an_adapter_that_came_while_activations_were_measured_is_told(
    own_bundle: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepeft.data import Examples

    texts = {"*": Examples(texts=("a good film", "a bad book"), labels=None)}
    once(monkeypatch, _quantize, "measure_ranges", lambda: add(own_bundle, "late", checkpoints["plain"]))
    said: list[str] = []
    quantize(own_bundle, "w8a16", data=texts, announce=said.append)
    assert [line for line in said if line.startswith("w8a16 was measured without late")]
    replaced = lambda: add(own_bundle, "plain", checkpoints["head"], replace=True)  # noqa: E731
    once(monkeypatch, _quantize, "measure_ranges", replaced)
    with pytest.raises(BundleError, match=r"adapters/plain\.onnx_adapter was changed while it was being quantized"):
        quantize(own_bundle, "w8a16", data=texts, replace=True)
