"""Encoder-decoders in ONNX Runtime Web: two graphs, one adapter; the tokens that Python writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_decoder import MODELS, build_encoder_decoder_bundle

from edgepeft import runtime
from edgepeft.bench import Job, Prompts
from edgepeft.bundle import read_bundle
from edgepeft.devices.executors.web import NodeExecutor, WebExecutor
from edgepeft.errors import DeviceError, ParityError
from edgepeft.pipeline import export, write_input_style
from edgepeft.targets import load_target

from .test_web import needs_browser, needs_node

pytestmark = pytest.mark.e2e
TEXTS = ("the film was very good", "bad")
TOKENS = 10


@pytest.fixture(scope="module", params=list(MODELS))
def webbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two adapters over T5, and over BART, with both graphs for the web."""
    bundle = build_encoder_decoder_bundle(tmp_path_factory.mktemp(request.param), request.param)
    write_input_style(bundle)
    return bundle


def job(bundle: Path) -> Job:
    prompts = tuple(Prompts(adapter=name, texts=TEXTS, max_new_tokens=TOKENS) for name in (None, "small", "dora", None))
    return Job(bundle=str(bundle), variant="fp32", threads=1, prompts=prompts, restore=True)


def written(model: runtime.Runtime) -> list[list[int]]:
    """Greedy tokens of each text by itself, end tokens left out."""
    found = [model.generate(t, max_new_tokens=TOKENS, temperature=0, repetition_penalty=1.0) for t in TEXTS]
    return [[token for token in each.tokens if token not in model.end_tokens] for each in found]


def check(bundle: Path, done: Any) -> None:
    """Reference: Python, each text by itself. Python leaves the end token out; the very same tokens otherwise."""
    model = runtime.open(bundle)
    ends = model.end_tokens
    found = []
    for each in done.generated:
        model.use(each.adapter)
        rows = written(model)
        assert [[token for token in row if token not in ends] for row in each.tokens] == rows
        assert list(each.texts) == [model.encoder.decode(row) for row in rows]
        found.append(tuple(map(tuple, rows)))
    assert len(set(found)) == 3, "both adapters change what is written, and the base comes back"
    assert found[0] == found[-1]
    assert done.base_restored is True


def test_both_graphs_are_written_over_the_same_weights(webbed: Path) -> None:
    bundle = read_bundle(webbed)
    bundle.verify()
    entry = bundle.manifest.variants["fp32"]
    assert (entry.input_file, entry.decoder_input_file) == (
        "onnx/encoder_model_web.onnx", "onnx/decoder_with_past_model_web.onnx",
    )  # fmt: skip
    assert {path.name for path in (webbed / "onnx").glob("*_data")} == {
        "decoder_with_past_model.onnx_data", "encoder_model.onnx_data",
    }  # fmt: skip


def test_a_graph_that_differs_is_caught(webbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's half too: a slot of it that begins with other numbers is another base."""
    own = Path(shutil.copytree(webbed, tmp_path / "own"))
    before = {p: p.read_bytes() for p in own.rglob("*") if p.is_file()}

    def wrong(manifest: Any, defaults: Any) -> dict[str, np.ndarray]:
        slots = {}
        for name, shape in manifest.slots.tensors().items():
            sizes = [size if isinstance(size, int) else 1 for size in shape]
            slots[name] = np.full(sizes, 0.1 if "decoder" in name else 0.0, np.float32)
        return slots

    monkeypatch.setattr("edgepeft.pipeline._web_session.empty_slots", wrong)
    with pytest.raises(ParityError, match=r"outputs of .* differ"):
        write_input_style(own)
    assert {p: p.read_bytes() for p in own.rglob("*") if p.is_file()} == before


@needs_node
def test_in_node(webbed: Path) -> None:
    check(webbed, NodeExecutor(load_target("web-wasm")).run(job(webbed)))


@needs_browser
def test_in_chromium(webbed: Path) -> None:
    check(webbed, WebExecutor(load_target("web-wasm")).run(job(webbed)))


@needs_node
@pytest.mark.parametrize("webbed", ["T5"], indirect=True)
def test_a_merged_one(webbed: Path, tmp_path: Path) -> None:
    """Its graphs have no slots, and run as they are."""
    model, source = webbed.parent / "model", webbed.parent / "wide"
    export(model, {"wide": source}, tmp_path / "merged", mode="merge")
    asked = job(tmp_path / "merged").model_copy(
        update={"prompts": (Prompts(adapter=None, texts=TEXTS, max_new_tokens=TOKENS),), "restore": False}
    )
    (found,) = NodeExecutor(load_target("web-wasm")).run(asked).generated
    own = runtime.open(tmp_path / "merged")
    rows = written(own)
    assert [[token for token in row if token not in own.end_tokens] for row in found.tokens] == rows


@needs_node
def test_a_decoder_that_was_changed(webbed: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(webbed, tmp_path / "own"))
    file = own / "onnx" / "decoder_with_past_model_web.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DeviceError, match=r"decoder_with_past_model_web\.onnx was changed after"):
        NodeExecutor(load_target("web-wasm")).run(job(own))
