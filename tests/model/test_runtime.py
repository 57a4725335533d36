"""The on-device part, over a bundle of a tiny BERT: swapping, scaling, lifetimes, threads and every refusal."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bases, all_equal, ragged

from edgepeft import runtime
from edgepeft.adapters import read_adapter
from edgepeft.adapters.files import read_onnx_adapter, write_onnx_adapter
from edgepeft.adapters.fill import fill_slots
from edgepeft.errors import (
    AdapterMismatchError,
    BundleError,
    CorruptBundleError,
    InputError,
    ManifestError,
    UnknownAdapterError,
)
from edgepeft.graph.run import run_graph

TEXTS = ["the film was very good .", "bad plot", "a great book , and a fine end"]


@pytest.fixture
def inputs(bases: Bases) -> dict[str, np.ndarray]:
    return ragged(bases("bert"))[1]


def test_needs_neither_torch_nor_transformers(bundle: Path) -> None:
    code = (
        "import sys; from edgepeft import runtime; r = runtime.open(sys.argv[1]); r.use('head'); r.predict(['a film']);"
        "heavy = {'torch', 'transformers', 'peft', 'onnx', 'onnx_ir', 'safetensors'};"
        "print(sorted({m.split('.')[0] for m in sys.modules} & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_base_restored_bit_for_bit(bundle: Path, inputs: dict[str, np.ndarray]) -> None:
    opened = runtime.open(bundle)
    before = opened.forward(inputs)
    seen = {name: opened.use(name).forward(inputs)["logits"] for name in opened.adapters}
    assert {name: array.shape for name, array in seen.items()} == {"plain": (3, 3), "head": (3, 5), "dora": (3, 3)}
    assert not np.allclose(seen["plain"], before["logits"], atol=1e-2)
    assert not np.allclose(seen["dora"], seen["plain"], atol=1e-2)
    assert all_equal(opened.use(None).forward(inputs), before)
    assert opened.active is None
    for name, array in seen.items():
        np.testing.assert_array_equal(opened.use(name).forward(inputs)["logits"], array)


@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0, 0.0])
def test_scale_is_the_low_rank_part(
    scale: float, bundle: Path, bases: Bases, checkpoints: dict[str, Path], inputs: dict[str, np.ndarray]
) -> None:
    """Reference: the base's weights plus ``scale`` times the delta, merged in float64. fp32 tolerance of one layer: 1e-4."""
    import dataclasses

    from edgepeft.adapters.edits import LowRank, SiteEdit
    from edgepeft.graph.edit_base import merge

    base = bases("bert")
    adapter = read_adapter(checkpoints["plain"], name="plain", weights=base.weight)
    sites = {
        site: SiteEdit(low_rank=LowRank(a=edit.low_rank.a, b=scale * edit.low_rank.b))
        for site, edit in adapter.sites.items()
        if edit.low_rank is not None
    }
    expected = run_graph(merge(base, dataclasses.replace(adapter, sites=sites)).graph, [inputs])[0]["logits"]
    opened = runtime.open(bundle)
    found = opened.use("plain", scale=scale).forward(inputs)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.allclose(found, opened.use("plain").forward(inputs)["logits"], atol=1e-4) == (scale == 1.0)


def test_scale_keeps_the_head(bundle: Path, inputs: dict[str, np.ndarray]) -> None:
    opened = runtime.open(bundle)
    assert opened.use("head", scale=0.5).forward(inputs)["logits"].shape == (3, 5)
    assert opened.labels == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scale_must_be_finite(scale: float, bundle: Path) -> None:
    with pytest.raises(InputError, match="finite"):
        runtime.open(bundle).use("plain", scale=scale)


def test_refusals_leave_the_adapter_in_use(bundle: Path, inputs: dict[str, np.ndarray]) -> None:
    opened = runtime.open(bundle).use("plain")
    before = opened.forward(inputs)
    with pytest.raises(InputError, match=r"dora.*cannot be scaled"):
        opened.use("dora", scale=0.5)
    with pytest.raises(UnknownAdapterError, match=r"no adapter 'nope'; it has: plain, head, dora"):
        opened.use("nope")
    assert opened.active == "plain"
    assert all_equal(opened.forward(inputs), before)


def test_adapters_outlive_their_handles(bundle: Path, inputs: dict[str, np.ndarray]) -> None:
    """ONNX Runtime does not keep an adapter's memory: 200 swaps with collections in between give the same bits."""
    opened = runtime.open(bundle, threads=1)
    expected = {name: opened.use(name).forward(inputs)["logits"] for name in (*opened.adapters, None)}
    names = [*opened.adapters, None]
    for turn in range(200):
        name = names[turn % len(names)]
        opened.engine.resident.forget()  # nothing but the adapter in use holds the file's memory now
        opened.use(name, scale=1.0 if turn % 3 or name != "plain" else 0.5)
        opened.use(name)
        gc.collect(0)
        junk = np.full(4096, turn, np.float32)  # reuse memory that was freed too early
        np.testing.assert_array_equal(opened.forward(inputs)["logits"], expected[name])
        del junk


def test_swapping_while_others_run(bundle: Path, inputs: dict[str, np.ndarray]) -> None:
    """Each run is wholly one adapter's: the result is always one of the known ones, to the bit."""
    opened = runtime.open(bundle, threads=1)
    names = [*opened.adapters, None]
    known = {opened.use(name).forward(inputs)["logits"].tobytes() for name in names}
    stop, wrong = threading.Event(), []

    def run() -> None:
        while not stop.is_set():
            try:
                found = opened.forward(inputs)["logits"].tobytes()
            except Exception as error:
                wrong.append(repr(error))
                return
            if found not in known:
                wrong.append("mixed")

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        opened.engine.resident.forget()
        opened.use(names[turn % len(names)])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads(bundle: Path, inputs: dict[str, np.ndarray]) -> None:
    one, two = (runtime.open(bundle, threads=count).use("plain").forward(inputs)["logits"] for count in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-5)  # the same sums, split among threads
    with pytest.raises(InputError, match="at least 1"):
        runtime.open(bundle, threads=0)


class TestInputs:
    @pytest.mark.parametrize(
        "change",
        [
            lambda i: {k: v for k, v in i.items() if k != "attention_mask"},
            lambda i: {**i, "position_ids": i["input_ids"]},
            lambda i: {**i, "input_ids": i["input_ids"].astype(np.int32)},
            lambda i: {**i, "input_ids": i["input_ids"][0]},
            lambda i: {**i, "attention_mask": i["attention_mask"][:, :-1]},
            lambda i: {k: v[:0] for k, v in i.items()},
            lambda i: {k: v[:, :0] for k, v in i.items()},
            lambda i: {**i, "input_ids": i["input_ids"] + 10_000},
            lambda i: {k: np.repeat(v, 10, axis=1) for k, v in i.items()},
        ],
        ids=["missing", "extra", "dtype", "rank", "shapes differ", "no rows", "no tokens", "token id", "too long"],
    )
    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_wrong_arrays(self, change: Any, scale: float, bundle: Path, inputs: dict[str, np.ndarray]) -> None:
        opened = runtime.open(bundle).use("plain", scale=scale)
        good = opened.forward(inputs)
        with pytest.raises(InputError):
            opened.forward(change(inputs))
        assert all_equal(opened.forward(inputs), good)

    def test_no_texts(self, bundle: Path) -> None:
        opened = runtime.open(bundle)
        for call in (opened.predict, opened.logits):
            with pytest.raises(InputError, match="no texts"):
                call([])

    def test_text(self, bundle: Path) -> None:
        opened = runtime.open(bundle)
        arrays = opened.encode(TEXTS)
        assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == dict.fromkeys(
            ("input_ids", "attention_mask", "token_type_ids"), ((3, 10), "int64")
        )
        alone = np.concatenate([opened.use("plain").logits([text]) for text in TEXTS])
        # Padding changes nothing but the order of sums: 1e-5.
        np.testing.assert_allclose(opened.logits(TEXTS, batch_size=2), alone, atol=1e-5)
        long = opened.logits(["good " * 500])  # cut at the base's longest input
        assert np.isfinite(long).all()
        assert opened.encode(["good " * 500])["input_ids"].shape == (1, 32)

    def test_labels(self, bundle: Path) -> None:
        opened = runtime.open(bundle)
        assert opened.use("head").labels == ("a", "b", "c", "d", "e")
        found = opened.predict(TEXTS)
        assert {p.label for p in found} <= set("abcde")
        assert all(abs(sum(p.probabilities.values()) - 1) < 1e-9 for p in found)
        assert opened.use(None).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


class TestDamage:
    @pytest.mark.parametrize(
        "file", ["onnx/model.onnx", "onnx/model.onnx_data", "adapters/plain.onnx_adapter", "adapters/dora.onnx_adapter"]
    )
    @pytest.mark.parametrize("how", ["truncated", "edited", "missing", "linked out"])
    def test_files(self, file: str, how: str, own_bundle: Path, tmp_path: Path) -> None:
        path = own_bundle / file
        data = path.read_bytes()
        if how == "truncated":
            path.write_bytes(data[:-7])
        elif how == "edited":
            path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        else:
            path.unlink()
            if how == "linked out":
                (tmp_path / "outside").write_bytes(data)
                path.symlink_to(tmp_path / "outside")
        with pytest.raises(CorruptBundleError, match=path.name):
            runtime.open(own_bundle, verify="always")
        with pytest.raises(CorruptBundleError, match=path.name):
            runtime.open(own_bundle).adapter(path.stem)  # what an adapter holds is looked at when it is first used

    def test_adapter_cut_short_after_opening(self, own_bundle: Path) -> None:
        opened = runtime.open(own_bundle)
        path = own_bundle / "adapters" / "plain.onnx_adapter"
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[:100])
        with pytest.raises(CorruptBundleError, match="changed since the bundle was opened"):
            opened.use("plain")

    def edit(self, own_bundle: Path, change: Any) -> None:
        manifest = own_bundle / "edgepeft.json"
        value = json.loads(manifest.read_text())
        change(value)
        manifest.write_text(json.dumps(value))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda m: m["adapters"]["plain"].update(base_identity="0" * 64), "made for base identity 0000"),
            (lambda m: m["adapters"]["plain"].update(slots_hash="0" * 64), "made for slot schema 0000"),
            (lambda m: m["adapters"]["plain"]["tensors"].update({"x": [1]}), "fills x, which is not a slot"),
            (
                lambda m: m["adapters"]["plain"]["tensors"].update(
                    {next(iter(m["adapters"]["plain"]["tensors"])): [1, 99, 8]}
                ),
                "has shape .*99",
            ),
            (lambda m: m["adapters"]["plain"]["tensors"].popitem(), "should hold"),
        ],
    )
    def test_contract(self, change: Any, words: str, own_bundle: Path) -> None:
        self.edit(own_bundle, change)
        with pytest.raises(AdapterMismatchError, match=words):
            runtime.open(own_bundle)

    def test_half_an_adapter(self, own_bundle: Path) -> None:
        """ONNX Runtime would run an adapter that covers half of its slots and say nothing."""
        from edgepeft.bundle import hash_file

        path = own_bundle / "adapters" / "plain.onnx_adapter"
        tensors, _, _ = read_onnx_adapter(path)
        path.unlink()
        half = dict(list(tensors.items())[: len(tensors) // 2])
        write_onnx_adapter(path, half, base_identity="0" * 64, slots_hash="0" * 64)
        self.edit(
            own_bundle, lambda m: m["files"].update({"adapters/plain.onnx_adapter": hash_file(path).model_dump()})
        )
        with pytest.raises(AdapterMismatchError, match=r"plain.*should hold"):
            runtime.open(own_bundle).adapter("plain")

    def test_not_a_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="does not exist"):
            runtime.open(tmp_path / "none")
        with pytest.raises(BundleError, match=r"holds no edgepeft\.json"):
            runtime.open(tmp_path)
        (tmp_path / "edgepeft.json").write_bytes(b"\xff\xfe")
        with pytest.raises(ManifestError):
            runtime.open(tmp_path)

    def test_unknown_variant(self, bundle: Path) -> None:
        with pytest.raises(BundleError, match="no variant 'q4'; it has: fp32"):
            runtime.open(bundle, variant="q4")


def test_composed_equals_swapped(
    bundle: Path, bases: Bases, checkpoints: dict[str, Path], inputs: dict[str, np.ndarray]
) -> None:
    """Slotted base + adapter subgraph as one static graph. The same kernels see the same numbers: 1e-6."""
    import onnx_ir as ir

    from edgepeft.adapters.files import read_adapter_onnx
    from edgepeft.bundle import read_bundle
    from edgepeft.graph.passes.compose import Compose

    opened = runtime.open(bundle)
    table = read_bundle(bundle).manifest.slots
    graph = ir.load(bundle / "onnx" / "model.onnx")
    for name in (*opened.adapters, None):
        tensors = read_adapter_onnx(bundle / "adapters" / f"{name}.onnx").tensors if name else {}
        static = Compose(table, tensors)(graph).model
        assert {value.name for value in static.graph.inputs} == set(inputs)
        expected = opened.use(name).forward(inputs)["logits"]
        np.testing.assert_allclose(run_graph(static, [inputs])[0]["logits"], expected, atol=1e-5)
    with pytest.raises(AdapterMismatchError, match="no slot odd"):
        Compose(table, {"odd": np.zeros((1, 2, 3), np.float32)})(graph)
    slot = table.linear[0]
    with pytest.raises(AdapterMismatchError, match="shape"):
        Compose(table, {slot.a: np.zeros((1, 3, 2), np.float32)})(graph)


def test_rows_may_bring_their_own_adapters(
    bases: Bases, checkpoints: dict[str, Path], inputs: dict[str, np.ndarray]
) -> None:
    """A and B with a batch axis, heads included: each row equals its adapter alone. Other sums: 1e-5."""
    from edgepeft.graph.edit_base import add_slots

    base = bases("bert")
    read = {n: read_adapter(checkpoints[n], name=n, weights=base.weight) for n in ("plain", "untrained")}
    slotted = add_slots(base, list(read.values()))
    filled = [fill_slots(adapter, slotted.table).tensors for adapter in read.values()]
    order = [0, 1, 0]
    mixed = {name: np.concatenate([filled[i][name] for i in order]) for name in filled[0]}
    alone = [run_graph(slotted.graph, [inputs], tensors)[0]["logits"] for tensors in filled]
    found = run_graph(slotted.graph, [inputs], mixed)[0]["logits"]
    for row, which in enumerate(order):
        np.testing.assert_allclose(found[row], alone[which][row], atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "deberta-v2"])
def test_an_empty_slot_adds_one_column_of_zeros(architecture: str, bases: Bases) -> None:
    """The second factor is one output wide by default, and the sum is broadcast: the base's own bits, half the work."""
    from conftest import ragged

    from edgepeft.graph.edit_base import add_slots

    base = bases(architecture, "feature-extraction")  # a head is replaced as a whole, and sums in another order
    slotted = add_slots(base, reserve="all-linear")
    assert slotted.table.linear
    for slot in slotted.table.linear:
        default = slotted.graph.graph.initializers[slot.b].const_value
        assert default is not None
        assert default.shape == (1, 0, 1)
        assert dict(slot.tensors())[slot.b] == ("adapter_batch", slot.rank, slot.out_features)
    for batch in ragged(base):
        assert all_equal(run_graph(slotted.graph, [batch])[0], run_graph(base.graph, [batch])[0])
