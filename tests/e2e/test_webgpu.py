"""ONNX Runtime Web's WebGPU provider in headless Chromium, on a GPU or on SwiftShader: parity, restored base, what fell back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from click.testing import Result

from edgepeft import runtime
from edgepeft.bench import run_worker
from edgepeft.devices import executor_for
from edgepeft.devices.executors.web import WebGpuExecutor, executor, gpu, packages
from edgepeft.errors import DeviceError
from edgepeft.pipeline import write_input_style
from edgepeft.targets import load_target

from .test_web import job, needs_browser
from .test_web_generate import job as speak

pytestmark = [pytest.mark.e2e, needs_browser]


@pytest.fixture(scope="session")
def device() -> WebGpuExecutor:
    """The target's executor; a test that needs it is skipped where no adapter answers."""
    found = executor_for(load_target("web-webgpu"))
    assert isinstance(found, WebGpuExecutor)
    missing = found.missing()
    if missing:
        pytest.skip("; ".join(each.what for each in missing))
    return found


def test_every_adapter_and_the_base_again(device: WebGpuExecutor, webbed: Path) -> None:
    """Reference: the same job natively. 1e-4, as parity with PEFT allows: the shaders sum in another order."""
    asked = job(webbed, swaps=9)
    done = device.run(asked)
    native = run_worker(asked.model_copy(update={"swaps": 0}))
    for there, here in zip(done.rows, native.rows, strict=True):
        found, expected = np.array(there.logits), np.array(here.logits)
        assert np.abs(found - expected).max() <= 1e-4
        assert (found.argmax(1) == expected.argmax(1)).all()
    logits = {rows.adapter: np.array(rows.logits) for rows in done.rows}
    assert np.abs(logits["reviews"] - logits["movies"]).max() > 0.01, "a swap that does nothing would pass otherwise"
    assert done.base_restored is True
    assert done.swap is not None
    assert len(done.swap.use_ms) == 9
    said, placed = done.notes
    assert said.startswith("GPU: ")
    assert ("software" in said) == device.emulated
    count, _, total = placed.partition(" nodes ran on WebGPU")[0].partition(" of ")
    assert int(total) > int(count) > int(total) / 2
    assert "on the CPU, in WebAssembly: " in placed, "shape arithmetic is never WebGPU's"


def test_int8_says_that_its_products_run_on_the_cpu(device: WebGpuExecutor, webbed: Path) -> None:
    """The target forbids these operators; a run that is asked for says what became of them."""
    done = device.run(job(webbed, variant="int8", restore=False))
    assert "MatMulInteger" in done.notes[1] or "DynamicQuantizeMatMul" in done.notes[1], done.notes


def test_a_language_model(device: WebGpuExecutor, tmp_path: Path) -> None:
    """Reference: greedy tokens natively. The very same: gaps between a random model's logits are far above rounding.

    A prompt of more than 32 tokens too: attention over so many at once gives other numbers on SwiftShader.
    """
    bundle = build_causal_bundle(tmp_path)
    write_input_style(bundle)
    asked = speak(bundle)
    short: dict[str, Any] = {"max_new_tokens": 6, "texts": ("good day", "the end of the book was not very good " * 6)}
    prompts = tuple(p.model_copy(update=short) for p in asked.prompts if p.chat is False)
    asked = asked.model_copy(update={"prompts": prompts})
    assert len(runtime.open(bundle).generator.tokens.encode(short["texts"][1], special=True)) > 64
    done, native = device.run(asked), run_worker(asked)
    assert [g.tokens for g in done.generated] == [g.tokens for g in native.generated]
    assert len({g.tokens for g in done.generated}) == 3
    assert done.base_restored is True


def test_validate_on_the_target(
    device: WebGpuExecutor, webbed: Path, cli: Callable[..., Result], tmp_path: Path
) -> None:
    done = cli(
        "validate", webbed, "--target", "web-webgpu", "--no-reference", "--report", tmp_path / "report", "--json"
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["data"]["executor"] == device.name
    assert report["data"]["emulated"] is device.emulated
    assert report["data"]["base_restored"] == {"fp32": True}
    assert any("nodes ran on WebGPU" in note for note in report["notes"])


def test_doctor_names_the_gpu(device: WebGpuExecutor, cli: Callable[..., Result]) -> None:
    done = cli("targets", "doctor", "web-webgpu")
    assert done.exit_code == 0
    assert f"ready, {device.name}" in done.stdout
    assert ("times are not judged" in done.stdout) == device.emulated


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real browser that gives pages no adapter."""
    for module in (gpu, executor):
        monkeypatch.setattr(module, "WEBGPU_FLAGS", ("--disable-gpu",))
    monkeypatch.setattr(WebGpuExecutor, "_flags", ("--disable-gpu",))
    gpu.find_gpu.cache_clear()
    yield
    gpu.find_gpu.cache_clear()


def test_without_an_adapter(without_gpu: None, webbed: Path, cli: Callable[..., Result]) -> None:
    """Doctor says so, the target is static only, and a page that is run all the same does not fall back without a word."""
    done = cli("targets", "doctor", "web-webgpu")
    assert done.exit_code == 1
    assert "gives pages no WebGPU adapter, not even SwiftShader's" in done.stdout
    done = cli("validate", webbed, "--target", "web-webgpu", "--no-reference")
    assert "static only, nothing was executed" in done.stdout
    with pytest.raises(DeviceError, match=r"no WebGPU here: navigator\.gpu gives no adapter"):
        WebGpuExecutor(load_target("web-webgpu")).run(job(webbed))


def test_a_browser_that_does_not_run_has_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\nexit 7\n")
    browser.chmod(0o755)
    assert gpu.find_gpu(str(browser)) is None
    monkeypatch.setenv("EDGEPEFT_CHROMIUM", "/no/such/browser")
    found = WebGpuExecutor(load_target("web-webgpu"))
    assert (found.name, found.emulated) == ("webgpu (Chromium)", False)
    assert "no browser at" in found.missing()[0].what
    assert packages.find_browser() is None
