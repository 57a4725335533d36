"""``BlockMatMul``, compiled here, against ONNX Runtime's own ``MatMulNBits``: alone, under sanitizers, and in quantized bundles."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernel_library
import numpy as np
import onnx
import pytest
from causal import build_generating_bundle
from onnx import TensorProto, helper, numpy_helper

from edgepeft import runtime
from edgepeft.pipeline import quantize
from edgepeft.runtime.kernels import library_for
from edgepeft.runtime.sessions import open_session

from .test_kernels import TEXTS, install, package

__all__ = ["install", "package"]
pytestmark = pytest.mark.e2e


@pytest.fixture
def library(package: Path, install: Callable[[Path], None]) -> Path:
    install(package)
    found = library_for("require")
    assert found is not None
    if not found.matmul:
        pytest.skip("this processor has no AVX-512 with dot products of bytes")
    return found.path


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = build_generating_bundle(tmp_path_factory.mktemp("matrices"))
    quantize(bundle, "q4", method="rtn")
    return bundle


def graph(k: int, n: int, bits: int, *, half: bool, zeros: bool, bias: bool, seed: int = 0) -> bytes:
    """``theirs`` and ``ours``: the same weights through both nodes."""
    rng, blocks = np.random.default_rng(seed), -(-k // 32)
    weights: dict[str, np.ndarray] = {
        "w": rng.integers(0, 256, (n, blocks, 4 * bits), np.uint8),
        "s": rng.uniform(0.001, 0.01, (n, blocks)).astype(np.float16),
    }
    weights["wide"] = weights["s"].astype(np.float32)
    if zeros:
        weights["z"] = rng.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8)
    if bias:
        weights["b"] = rng.standard_normal(n, np.float32)
    names = ["z" if zeros else "", "b" if bias else ""]
    numbers = {"K": k, "N": n, "bits": bits}
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "w", "wide", names[0], "", names[1]], ["theirs"], domain="com.microsoft", block_size=32,
            accuracy_level=4, **numbers,
        ),
        helper.make_node(
            "BlockMatMul", ["x", "w", "s" if half else "wide", *names], ["ours"], domain="edgepeft", name="the.matrix",
            **numbers,
        ),
    ]  # fmt: skip
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("theirs", "ours")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("edgepeft", 4)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("half", "zeros", "bias"), [(True, True, True), (False, True, False), (True, False, False)])
@pytest.mark.parametrize("rows", [(1, 1), (1, 7), (2, 33)])
@pytest.mark.parametrize(("k", "n"), [(32, 5), (576, 130), (1536, 64)])
def test_the_numbers_of_onnxruntimes_own(
    k: int, n: int, rows: tuple[int, int], bits: int, half: bool, zeros: bool, bias: bool, library: Path
) -> None:
    """To float32's rounding of sums over K: 2e-6 of the largest."""
    content = graph(k, n, bits, half=half, zeros=zeros, bias=bias)
    x = np.random.default_rng(1).standard_normal((*rows, k), np.float32)
    each = []
    for threads in (1, 2):
        session = open_session(content, threads=threads, operators=library)
        theirs, ours = session.run(["theirs", "ours"], {"x": x})
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())
        each.append(ours)
    assert each[0].tobytes() == each[1].tobytes(), "threads share columns, not sums"


def test_a_row_has_the_same_bits_alone_and_among_some_others(library: Path) -> None:
    """What a draft is compared with was computed alone."""
    session = open_session(graph(576, 131, 4, half=True, zeros=True, bias=True), threads=1, operators=library)
    x = np.random.default_rng(1).standard_normal((10, 576), np.float32)
    alone = np.concatenate([session.run(["ours"], {"x": row[None]})[0] for row in x])
    for rows in range(2, 11):
        assert session.run(["ours"], {"x": x[:rows]})[0].tobytes() == alone[:rows].tobytes()


def test_no_rows_and_rows_of_nothing(library: Path) -> None:
    session = open_session(graph(64, 5, 4, half=True, zeros=True, bias=True), threads=1, operators=library)
    for shape in ((0, 64), (3, 0, 64), (3, 64)):
        theirs, ours = session.run(["theirs", "ours"], {"x": np.zeros(shape, np.float32)})
        assert ours.shape == (*shape[:-1], 5)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("x", None, "x is .*, and the weights are for 64"),
        ("w", np.zeros((5, 2, 15), np.uint8), "the weights are .*, expected 5 x 2 blocks of 32"),
        ("s", np.zeros((5, 3), np.float16), "the scales are"),
        ("s", np.zeros((5, 2), np.float64), "the scales are"),
        ("z", np.zeros((5, 2), np.uint8), "the zero points are"),
        ("b", np.zeros(4, np.float32), "the bias is"),
    ],
)
def test_what_does_not_fit_names_the_node(name: str, array: np.ndarray | None, match: str, library: Path) -> None:
    model = onnx.load_from_string(graph(64, 5, 4, half=True, zeros=True, bias=True))
    del model.graph.node[0]
    del model.graph.output[0]
    if array is not None:
        place = next(number for number, each in enumerate(model.graph.initializer) if each.name == name)
        model.graph.initializer[place].CopyFrom(numpy_helper.from_array(array, name))
    session = open_session(model.SerializeToString(), threads=1, operators=library)
    with pytest.raises(Exception, match=rf"BlockMatMul the\.matrix: {match}"):
        session.run(None, {"x": np.ones((2, 63 if name == "x" else 64), np.float32)})


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_over_random_matrices(sanitizer: str, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    kernel_library.build_fuzz(
        tmp_path / "fuzz", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", test="fuzz_blocks"
    )
    done = subprocess.run([tmp_path / "fuzz", "400"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"avx512vnni: 400 matrices agree\n|none: .*\n", done.stdout)


def logits(view: Any) -> np.ndarray:
    decoder = view.decoder(1, 60)
    ids = np.random.default_rng(0).integers(3, 250, 30).tolist()
    found = [decoder.prefill([ids[:20]]).copy(), *(decoder.step([token]).copy() for token in ids[20:])]
    return np.concatenate(found)


@pytest.mark.parametrize("name", [None, "wide", "narrow", {"wide": 0.6, "narrow": 0.4}], ids=str)
def test_a_language_model_in_4_bits(name: Any, rounded: Path, library: Path) -> None:
    """Roundings of activations to 8 bits differ here and there where a sum differs in its last bit: 2 % of the largest logit."""
    plain, twin = (runtime.open(rounded, variant="q4", threads=1, kernels=use) for use in ("off", "require"))
    assert plain.kernels is None
    assert twin.kernels is not None
    assert twin.kernels.matrices == 11, "q, k and v in one, o, gate, up and down of two layers, and the head"
    assert "11 quantized matrices" in repr(twin.kernels)
    wanted, found = logits(plain.adapter(name)), logits(twin.adapter(name))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())
    assert np.abs(found - wanted).mean() <= 2e-3 * np.abs(wanted).max()
    assert found.argmax(-1).tolist() == wanted.argmax(-1).tolist()
    options: dict[str, Any] = {"chat": False, "max_new_tokens": 30}
    for prompt in TEXTS:
        view = twin.adapter(name)
        assert view.generate(prompt, draft="prompt", **options).tokens == view.generate(prompt, **options).tokens


def test_the_file_stays_where_it_is(rounded: Path, library: Path) -> None:
    """Weights are mapped: the numbers that a run reads are those of the file, which a second process could share."""
    with runtime.open(rounded, variant="q4", threads=1, kernels="require") as model:
        assert model.kernels is not None
        name = rounded.name
        mapped = [
            line for line in Path("/proc/self/smaps").read_text().splitlines() if name in line and "onnx_data" in line
        ]
    assert mapped
