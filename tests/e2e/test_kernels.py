"""The kernels, compiled here: against numpy, under sanitizers, and in bundles against ONNX Runtime's own operators."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kernel_library
import numpy as np
import onnx
import pytest
from causal import build_generating_bundle
from encoder_decoder import build_encoder_decoder_bundle
from onnx import TensorProto, helper

from edgepeft import runtime
from edgepeft.errors import BundleError, InputError, MissingExtraError
from edgepeft.runtime import kernels as room
from edgepeft.runtime.kernels import KernelWarning
from edgepeft.worker.__main__ import measure
from edgepeft.worker.job import Job

pytestmark = pytest.mark.e2e

TEXTS = ["a fine film", "the end of the book was not very good at all", "no", "naïve café"]


@pytest.fixture(scope="module")
def package() -> Path:
    if reason := kernel_library.missing():
        pytest.skip(reason)
    return kernel_library.package_folder()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """``install(folder)``: the package ``edgepeft_kernels`` in that folder is the installed one."""

    def forget() -> None:
        room._installed.cache_clear()
        room._said.clear()
        sys.modules.pop("edgepeft_kernels", None)
        importlib.invalidate_caches()

    def put(folder: Path) -> None:
        monkeypatch.syspath_prepend(str(folder))
        forget()

    yield put
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_generating_bundle(tmp_path_factory.mktemp("kernels"))


def graph(half: bool, offsets: list[int]) -> bytes:
    factor = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    types = {"y": TensorProto.FLOAT, "x": TensorProto.FLOAT, "a": factor, "b": factor, "reach": TensorProto.INT32}
    more = {"offsets": offsets} if offsets else {}
    node = helper.make_node("LowRankAdd", list(types), ["result"], domain="edgepeft", name="the.slot", **more)
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()]
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edgepeft", 1)]
    made = helper.make_graph([node], "g", inputs, [result])
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def session(package: Path, *, half: bool = False, offsets: list[int] | None = None, threads: int = 2) -> Any:
    from edgepeft.runtime.sessions import open_session

    library = package / "edgepeft_kernels" / "libedgepeft_kernels.so"
    return open_session(graph(half, offsets or []), threads=threads, operators=library)


@pytest.mark.parametrize("seed", range(60))
def test_the_operator_against_numpy(seed: int, package: Path) -> None:
    """Batches, one adapter or one for each row, several threads, both types. Reference: numpy in float64."""
    rng = np.random.default_rng(seed)
    batch, tokens, wide, rank, out = (
        int(rng.integers(low, high)) for low, high in ((1, 5), (1, 70), (1, 200), (0, 70), (1, 300))
    )
    adapters = batch if rng.integers(3) == 0 else 1
    offsets = [0, *sorted(int(place) for place in rng.integers(0, out, 2))] if rng.integers(2) else []
    kind = np.float16 if rng.integers(2) else np.float32
    y, x = (rng.standard_normal((batch, tokens, size)).astype(np.float32) for size in (out, wide))
    a, b = (rng.standard_normal(shape).astype(kind) for shape in ((adapters, wide, rank), (adapters, rank, out)))
    reach = np.zeros((1, 0), np.int32)
    if rank and rng.integers(2):
        reach = rng.integers(-2, len(offsets) or 1, (adapters, rank)).astype(np.int32)
        ends = [*(offsets or [0]), out]
        for place in np.ndindex(reach.shape):
            part = reach[place]
            keep = np.zeros(out, bool) if (part >= -1 and part != -1) or part == -2 else np.ones(out, bool)
            if part >= 0:
                keep[ends[part] : ends[part + 1]] = True
            b[place][~keep] = 0
    (found,) = session(package, half=kind == np.float16, offsets=offsets).run(
        None, {"y": y, "x": x, "a": a, "b": b, "reach": reach}
    )
    h = x.astype(np.float64) @ a.astype(np.float64)
    wanted = y + h @ b.astype(np.float64)
    size = np.abs(y) + np.abs(h) @ np.abs(b.astype(np.float64))
    # float32 keeps 6e-8 of each term, in sums of up to 200 and 70 of them.
    assert (np.abs(found - wanted) <= 2e-6 * (size + np.abs(h).max(initial=0))).all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("x", (2, 3, 9)), ("x", (2, 4, 8)), ("b", (1, 5, 6)), ("b", (1, 4, 7)), ("a", (3, 8, 4)), ("reach", (1, 3))],
)
def test_shapes_that_do_not_fit_name_the_slot(name: str, shape: tuple[int, ...], package: Path) -> None:
    shapes = {"y": (2, 3, 6), "x": (2, 3, 8), "a": (1, 8, 4), "b": (1, 4, 6), "reach": (1, 0)} | {name: shape}
    fed = {key: np.ones(value, np.int32 if key == "reach" else np.float32) for key, value in shapes.items()}
    with pytest.raises(Exception, match=r"LowRankAdd the\.slot"):
        session(package).run(None, fed)


def piece_session(package: Path, slots: int, threads: int = 2) -> Any:
    """``y0``, then each slot's change added to it."""
    from edgepeft.runtime.sessions import open_session

    kinds = {"x": TensorProto.FLOAT, "y0": TensorProto.FLOAT, "adapter": TensorProto.UINT8, "rows": TensorProto.INT64}
    nodes = [
        helper.make_node(
            "AdapterAdd", [f"y{place}", "x", "adapter", "rows"], [f"y{place + 1}"], domain="edgepeft", name=f"slot.{place}",
            slot=place,
        )
        for place in range(slots)
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    result = helper.make_tensor_value_info(f"y{slots}", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edgepeft", 2)]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, [result]), opset_imports=opsets, ir_version=10)
    library = package / "edgepeft_kernels" / "libedgepeft_kernels.so"
    return open_session(made.SerializeToString(), threads=threads, operators=library)


def piece_slots(count: int, wide: int, out: int, parts: list[int]) -> list[Any]:
    from edgepeft.bundle.slots import LinearSlot, SlotPart

    ends = [*parts[1:], out]
    return [
        LinearSlot(
            name=f"s{place}", in_features=wide, out_features=out, a=f"s{place}.A", b=f"s{place}.B",
            rank=f"s{place}.rank", weight="w",
            parts=tuple(SlotPart(site=f"p{i}", offset=b, size=e - b) for i, (b, e) in enumerate(zip(parts, ends, strict=True))),
        )
        for place in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_adapters_in_one_piece_against_numpy(seed: int, package: Path) -> None:
    """One adapter, or some for the rows of a batch, of any ranks; packed parts; every type. Reference: numpy in float64."""
    from edgepeft.runtime.kernel_adapter import join_adapters, pack_adapter

    rng = np.random.default_rng(seed)
    batch, tokens, wide, out, count = (
        int(rng.integers(low, high)) for low, high in ((1, 6), (1, 40), (1, 200), (3, 300), (1, 4))
    )
    parts = [0, *sorted({int(place) for place in rng.integers(1, out, 2)})] if rng.integers(2) else [0]
    slots = piece_slots(count, wide, out, parts)
    factors: Any = ("fp32", "fp16", "int8")[seed % 3]
    adapters: list[dict[str, np.ndarray]] = []
    for _ in range(int(rng.integers(1, 4))):
        tensors = {}
        for slot in slots:
            rank = int(rng.integers(0, 40))
            tensors[slot.a] = rng.standard_normal((1, wide, rank)).astype(np.float16).astype(np.float32)
            b = rng.standard_normal((1, rank, out)).astype(np.float16).astype(np.float32)
            for r in range(rank):
                begin, end = sorted(int(place) for place in rng.choice([*parts, out], 2))
                b[0, r, :begin] = b[0, r, end:] = 0
            tensors[slot.b] = b
        for name in list(tensors) if rng.integers(3) == 0 else []:
            if name.startswith("s0"):
                del tensors[name]
        adapters.append(tensors)
    pieces = [pack_adapter(tensors, slots, factors) for tensors in adapters]
    content, rows = pieces[0], np.zeros(0, np.int64)
    chosen: list[int | None] = [0] * batch
    if rng.integers(2):
        chosen = [None if rng.integers(4) == 0 else int(rng.integers(len(adapters))) for _ in range(batch)]
        content, rows = join_adapters(pieces, chosen)
    y, x = (rng.standard_normal((batch, tokens, size)).astype(np.float32) for size in (out, wide))
    (found,) = piece_session(package, count).run(None, {"y0": y, "x": x, "adapter": content, "rows": rows})
    # float32 keeps 6e-8 of each term, in sums of up to 200 and 40 of them. int8 moves each factor by half of a 127th of its rank's
    # largest number at most.
    bound = 1.5e-2 if factors == "int8" else 2e-6
    for row, number in enumerate(chosen):
        wanted, size = y[row].astype(np.float64), np.abs(y[row]).astype(np.float64)
        for slot in slots:
            if number is None or slot.b not in adapters[number]:
                continue
            a, b = (adapters[number][name][0].astype(np.float64) for name in (slot.a, slot.b))
            wanted = wanted + x[row] @ a @ b
            # a rank's largest numbers stand for all of them: so much may rounding move each
            largest = np.abs(a).max(axis=0, initial=0), np.abs(b).max(axis=1, initial=0)[:, None] * (b != 0)
            size += np.abs(x[row]).sum(axis=1, keepdims=True) * (largest[0] @ largest[1])
        assert (np.abs(found[row] - wanted) <= bound * size).all()


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("in", "another shape"), ("out", "another shape"), ("slots", "fewer slots"), ("cut", "outside of itself"),
        ("magic", "layout"), ("layout", "layout"), ("start", "beyond the tensor"), ("batch", "adapters for 3 rows"),
    ],
)  # fmt: skip
def test_a_piece_that_does_not_fit_names_the_slot(fault: str, match: str, package: Path) -> None:
    from edgepeft.runtime.kernel_adapter import pack_adapter

    wide, out = 8 + (fault == "in"), 6 + (fault == "out")
    (slot,) = piece_slots(1, wide, out, [0])
    tensors = {slot.a: np.ones((1, wide, 4), np.float32), slot.b: np.ones((1, 4, out), np.float32)}
    content = pack_adapter(tensors, [slot], "fp32")
    rows = {"start": [0, content.size], "batch": [0, 0, 0]}.get(fault, [])
    if fault == "cut":
        content = content[:, :-64]
    if fault in ("magic", "layout"):
        content[0, {"magic": 0, "layout": 8}[fault]] = 77
    session = piece_session(package, 2 if fault == "slots" else 1)
    fed = {"y0": np.ones((2, 3, 6), np.float32), "x": np.ones((2, 3, 8), np.float32), "adapter": content}
    with pytest.raises(Exception, match=rf"AdapterAdd slot\.\d.*{match}"):
        session.run(None, {**fed, "rows": np.array(rows, np.int64)})


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_over_random_shapes(sanitizer: str, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    kernel_library.build_fuzz(tmp_path / "fuzz", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    done = subprocess.run([tmp_path / "fuzz", "800"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "portable: 800 shapes agree" in done.stdout


@pytest.mark.slow
def test_random_shapes_on_64_bit_arm(tmp_path: Path) -> None:
    """NEON, under Debian's emulator."""
    import platform

    if platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        pytest.skip("Debian's cross compiler is unpacked on x86-64")
    assert kernel_library.run_fuzz_on_arm64(tmp_path, 300) == "portable: 300 shapes agree\n"


def logits(view: Any) -> np.ndarray:
    decoder = view.decoder(1, 60)
    ids = np.random.default_rng(0).integers(3, 250, 30).tolist()
    found = [decoder.prefill([ids[:20]]).copy(), *(decoder.step([token]).copy() for token in ids[20:])]
    return np.concatenate(found)


@pytest.mark.parametrize("name", [None, "wide", "narrow", "prefix", {"wide": 0.6, "narrow": 0.4}], ids=str)
def test_a_language_model(name: Any, writing: Path, package: Path, install: Callable[[Path], None]) -> None:
    """Prompt and decoding. The base keeps its bits; adapters agree to float32's rounding over two layers."""
    install(package)
    plain, twin = (runtime.open(writing, threads=1, kernels=use).adapter(name) for use in ("off", "require"))
    wanted, found = logits(plain), logits(twin)
    if name is None:
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, atol=5e-6 * np.abs(wanted).max())
    for prompt in TEXTS:
        options: dict[str, Any] = {"chat": False, "max_new_tokens": 30}
        assert twin.generate(prompt, **options).tokens == plain.generate(prompt, **options).tokens
        assert twin.generate(prompt, draft="prompt", **options).tokens == plain.generate(prompt, **options).tokens


def test_rows_with_adapters_of_their_own(writing: Path, package: Path, install: Callable[[Path], None]) -> None:
    install(package)
    plain, twin = (runtime.open(writing, threads=1, kernels=use) for use in ("off", "require"))
    for names in (["wide", None, "narrow", "wide"], ["narrow", None, "wide", None]):
        options: dict[str, Any] = {"adapters": names, "chat": False, "max_new_tokens": 30}
        found = [each.tokens for each in twin.generate(TEXTS, **options)]
        assert found == [each.tokens for each in plain.generate(TEXTS, **options)]


def test_scaled_and_swapped(writing: Path, package: Path, install: Callable[[Path], None]) -> None:
    install(package)
    plain, twin = (runtime.open(writing, threads=1, kernels=use) for use in ("off", "require"))
    base = logits(twin.base)
    for scale in (0.5, 0.0, -2.0):
        wanted, found = (logits(model.adapter("wide", scale=scale)) for model in (plain, twin))
        np.testing.assert_allclose(found, wanted, atol=5e-6 * np.abs(wanted).max())
    np.testing.assert_array_equal(logits(twin.base), base)


@pytest.mark.parametrize(("factors", "most"), [("fp16", 2e-2), ("int8", 1e-1)])
def test_smaller_factors(
    factors: Any, most: float, writing: Path, package: Path, install: Callable[[Path], None]
) -> None:
    """float16 keeps 11 bits of each factor, so logits move by about 1e-3 of the adapter's own part.

    int8 keeps 7 bits of its rank's largest number.
    """
    install(package)
    plain = runtime.open(writing, threads=1, kernels="off")
    twin = runtime.open(writing, threads=1, kernels="require", factors=factors)
    assert twin.kernels is not None
    assert twin.kernels.factors == factors
    np.testing.assert_array_equal(logits(twin.base), logits(plain.base))
    for name in ("wide", "narrow"):
        wanted, found = logits(plain.adapter(name)), logits(twin.adapter(name))
        difference = np.abs(found - wanted).max()
        assert 0 < difference <= most * np.abs(wanted - logits(plain.base)).max()


def test_an_adapter_lies_in_memory_once(writing: Path, package: Path, install: Callable[[Path], None]) -> None:
    """What a view holds is the piece and what is no factor; views live on without their file."""
    install(package)
    twin = runtime.open(writing, threads=1, kernels="require", factors="int8")
    assert twin.kernels is not None
    active = twin.adapter("wide").active
    assert active.values is not None
    assert not set(active.values) & twin.kernels.taken
    assert active.piece is not None
    assert active.values[twin.kernels.adapter].shape() == list(active.piece.shape)
    factors = [shape for name, shape in twin.manifest.adapters["wide"].tensors.items() if name in twin.kernels.taken]
    assert (
        active.piece.size < 2 * sum(int(np.prod(shape)) for shape in factors) + 64 * (1 + len(twin.kernels.slots)) * 4
    )


def test_a_classifier(bundle: Path, package: Path, install: Callable[[Path], None]) -> None:
    """Heads, blends and mixed rows; the same through RunOptions and by value."""
    install(package)
    plain, twin = (runtime.open(bundle, threads=1, kernels=use) for use in ("off", "require"))
    assert twin.kernels is not None
    assert len(twin.kernels.slots) > 0
    inputs = plain.encode(TEXTS)
    for name in (None, *plain.adapters):
        wanted, found = (model.adapter(name).forward(inputs)["logits"] for model in (plain, twin))
        np.testing.assert_allclose(found, wanted, atol=5e-6 * max(1.0, np.abs(wanted).max()))
    rows = [*plain.adapters, None, *plain.adapters][:4]
    wanted, found = (model.forward(inputs, adapters=rows)["logits"] for model in (plain, twin))
    np.testing.assert_allclose(found, wanted, atol=5e-6 * max(1.0, np.abs(wanted[np.isfinite(wanted)]).max()))
    for factors, most in (("fp16", 1e-2), ("int8", 1e-1)):
        less = runtime.open(bundle, threads=1, kernels="require", factors=factors)
        for name in plain.adapters:
            wanted, found = (model.adapter(name).forward(inputs)["logits"] for model in (plain, less))
            np.testing.assert_allclose(found, wanted, atol=most * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("factors", ["fp32", "fp16"])
def test_an_encoder_decoder(factors: Any, package: Path, install: Callable[[Path], None], tmp_path: Path) -> None:
    """Both graphs have slots, of which each knows its own; DoRA's gains keep ONNX Runtime's nodes."""
    bundle = build_encoder_decoder_bundle(tmp_path, "Bart")
    install(package)
    plain = runtime.open(bundle, threads=1, kernels="off")
    twin = runtime.open(bundle, threads=1, kernels="require", factors=factors)
    for name in (None, "small", "dora"):
        for text in ("a good film", "the book was bad"):
            wanted = plain.adapter(name).generate(text, max_new_tokens=12)
            assert twin.adapter(name).generate(text, max_new_tokens=12).tokens == wanted.tokens
    assert twin.engine._decoder_kernels is not None
    with pytest.raises(InputError, match="draft='prompt' is for causal language models"):
        twin.generate("a good film", draft="prompt")


def test_the_twin_is_onnx(writing: Path) -> None:
    from edgepeft.bundle import read_bundle
    from edgepeft.runtime.twin import make_twin

    manifest = read_bundle(writing).manifest
    content = (writing / manifest.variants["fp32"].file).read_bytes()
    twin = make_twin(content, manifest.slots.linear)
    assert twin is not None
    before, after = onnx.load_from_string(content), onnx.load_from_string(twin.model)
    assert len(after.graph.node) == len(before.graph.node) - 2 * len(manifest.slots.linear)
    assert (
        sum(node.op_type == "LowRankAdd" for node in after.graph.node) == len(manifest.slots.linear) == len(twin.slots)
    )
    assert [output.name for output in after.graph.output] == [output.name for output in before.graph.output]
    names = {value.name for value in after.graph.input} - {value.name for value in before.graph.input}
    assert names == {f"{slot.name}.reach" for slot in twin.slots}


def test_what_was_measured_with_them_says_so(writing: Path, package: Path, install: Callable[[Path], None]) -> None:
    """Their latencies are not to be compared with those without."""
    job = Job(bundle=str(writing), variant="fp32", threads=1)
    assert measure(job).host.kernels == ""
    install(package)
    assert measure(job).host.kernels == room.installed_kernels() != ""


def test_doctor_says_what_they_run_with(package: Path, install: Callable[[Path], None]) -> None:
    install(package)
    assert re.fullmatch(r"\w+ for slots, (avx512vnni|ONNX Runtime) for quantized matrices", room.installed_kernels())


def test_a_graph_for_browsers_where_kernels_are_installed(
    writing: Path, package: Path, install: Callable[[Path], None], tmp_path: Path
) -> None:
    """It is compared with the other one bit for bit, which kernels would round otherwise."""
    from edgepeft.pipeline import write_input_style

    install(package)
    bundle = Path(shutil.copytree(writing, tmp_path / "bundle"))
    assert runtime.open(bundle, threads=1).kernels is not None
    write_input_style(bundle)


def test_what_is_used_is_said(writing: Path, package: Path, install: Callable[[Path], None]) -> None:
    install(package)
    used = runtime.open(writing, threads=1).kernels
    assert used is not None
    assert used.isa in ("avx512", "avx2", "portable")
    assert runtime.open(writing, threads=1, kernels="off").kernels is None


def test_onnxruntime_genai_opens_the_twin(writing: Path, package: Path, tmp_path: Path) -> None:
    """It loads libraries from the model's folder only."""
    import json

    og = pytest.importorskip("onnxruntime_genai")
    from edgepeft.bundle import read_bundle
    from edgepeft.runtime.twin import make_twin

    bundle = Path(shutil.copytree(writing, tmp_path / "bundle"))
    shutil.copy(package / "edgepeft_kernels" / "libedgepeft_kernels.so", bundle)
    manifest = read_bundle(writing).manifest
    twin = make_twin((bundle / manifest.variants["fp32"].file).read_bytes(), manifest.slots.linear)
    assert twin is not None
    (bundle / "onnx" / "kernels.onnx").write_bytes(twin.model)

    def tokens(decoder: dict[str, Any], adapter: bool) -> list[int]:
        config = og.Config(str(bundle))
        config.overlay(json.dumps({"model": {"decoder": decoder}}))
        model = og.Model(config)
        adapters = og.Adapters(model)
        adapters.load(str(bundle / "adapters" / "wide.onnx_adapter"), "wide")
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=40, do_sample=False)
        generator = og.Generator(model, parameters)
        if adapter:
            generator.set_active_adapter(adapters, "wide")
        generator.append_tokens([5, 6, 7, 8, 9])
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)]

    kernels = {"filename": "onnx/kernels.onnx", "session_options": {"custom_ops_library": "libedgepeft_kernels.so"}}
    plain = [tokens({}, adapter) for adapter in (False, True)]
    assert plain[0] != plain[1]
    assert [tokens(kernels, adapter) for adapter in (False, True)] == plain


STUB = 'extern "C" int edgepeft_kernels_abi() { return %d; }\nextern "C" const char* edgepeft_kernels_isa() { return "none"; }\n'


@pytest.mark.parametrize("fault", ["abi", "operators", "no library", "missing"])
def test_a_library_that_does_not_fit(
    fault: str, writing: Path, package: Path, install: Callable[[Path], None], tmp_path: Path
) -> None:
    """Said once, and the standard graph is used; an error where it is required."""
    made = tmp_path / "edgepeft_kernels"
    shutil.copytree(package / "edgepeft_kernels", made)
    library = made / "libedgepeft_kernels.so"
    library.unlink()
    if fault == "no library":
        library.write_bytes(b"\x7fELF but no more")
    elif fault != "missing":
        (tmp_path / "stub.cpp").write_text(STUB % (99 if fault == "abi" else 1), encoding="utf-8")
        subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "stub.cpp", "-o", library], check=True)
    install(tmp_path)
    with pytest.warns(KernelWarning, match="The standard graph is used"):
        model = runtime.open(writing, threads=1)
    assert model.kernels is None
    assert model.generate("a", chat=False, max_new_tokens=3).tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.open(writing, threads=1)  # not said again
    with pytest.raises((MissingExtraError, BundleError), match="kernels"):
        runtime.open(writing, threads=1, kernels="require")


def test_none_installed(
    writing: Path, install: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_PACKAGE", "edgepeft_kernels_that_are_not_there")
    install(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runtime.open(writing, threads=1).kernels is None
    with pytest.raises(MissingExtraError, match="pip install"):
        runtime.open(writing, threads=1, kernels="require")


@pytest.mark.parametrize(
    "options",
    [
        {"kernels": "yes"},
        {"kernels": None},
        {"factors": "int4"},
        {"factors": "fp16"},
        {"factors": "fp16", "kernels": "off"},
    ],
)
def test_refused(options: dict[str, Any], writing: Path) -> None:
    with pytest.raises(InputError, match=r"kernels|factors"):
        runtime.open(writing, threads=1, **options)
