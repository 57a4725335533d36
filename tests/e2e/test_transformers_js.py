"""Bundles in transformers.js, in Node: they open there as their base, and it computes what Python's runtime does."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from conftest import save_lora

from edgepeft import runtime
from edgepeft.cache import cache_dir
from edgepeft.pipeline import export, quantize

from .test_web import TEXTS, needs_node

pytestmark = [pytest.mark.e2e, needs_node]

HERE = Path(__file__).parent / "transformers_js"


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder with the pinned packages, fetched once into the cache without their install scripts."""
    lock = (HERE / "package-lock.json").read_bytes()
    folder = cache_dir() / "web" / f"transformers-js-{hashlib.sha256(lock).hexdigest()[:16]}"
    if (folder / "node_modules").is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".npm.", dir=folder.parent))
    try:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copyfile(HERE / name, staging / name)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=staging, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot fetch transformers.js: {done.stderr.strip()[-300:]}")
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


@pytest.fixture
def transformers_js(packages: Path, tmp_path: Path) -> Callable[..., Any]:
    """What ``run.mjs`` answers for a bundle."""
    shutil.copyfile(HERE / "run.mjs", tmp_path / "run.mjs")
    shutil.copyfile(HERE / "package.json", tmp_path / "package.json")
    (tmp_path / "node_modules").symlink_to(packages / "node_modules", target_is_directory=True)

    def run(bundle: Path, *asked: dict[str, Any]) -> Any:
        done = subprocess.run(
            ["node", str(tmp_path / "run.mjs"), str(bundle)], input=json.dumps(asked), capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


def test_a_language_model(transformers_js: Callable[..., Any], tmp_path: Path) -> None:
    """Reference: Python. Logits to 1e-4, since its ONNX Runtime is another version; greedy tokens exactly, 4-bit too."""
    bundle = build_causal_bundle(tmp_path)
    quantize(bundle, "q4")
    prompt = "the film was"
    asked = [{"task": "text-generation", "dtype": dtype, "prompt": prompt} for dtype in ("fp32", "q4")]
    answers = transformers_js(bundle, *asked)
    for dtype, answer in zip(("fp32", "q4"), answers, strict=True):
        model = runtime.open(bundle, variant=dtype)
        own = model.generate(prompt, chat=False, max_new_tokens=12, temperature=0)
        assert answer["tokens"] == list(own.tokens)
        logits = model.decoder(1, 32).prefill([model.generator.tokens.encode(prompt, special=True)])
        assert np.abs(np.array(answer["last"]) - logits[0]).max() <= 1e-4
        with_adapter = model.use("wide").generate(prompt, chat=False, max_new_tokens=12, temperature=0)
        assert with_adapter.tokens != own.tokens, "it is the base that transformers.js runs"
    assert answers[0]["tokens"] != answers[1]["tokens"] or answers[0]["last"] != answers[1]["last"]


def test_a_classifier(transformers_js: Callable[..., Any], models: Callable[..., Path], tmp_path: Path) -> None:
    """A base with a head of its own. Reference: Python, on a ragged batch that transformers.js pads; 1e-4 as above."""
    source = models("bert")
    save_lora(tmp_path / "lora", source, task_type="SEQ_CLS", seed=1)
    bundle = tmp_path / "bundle"
    export(source, {"lora": tmp_path / "lora"}, bundle, task="text-classification")
    quantize(bundle, "int8")
    asked = [{"task": "text-classification", "dtype": dtype, "texts": TEXTS} for dtype in ("fp32", "int8")]
    for dtype, answer in zip(("fp32", "int8"), transformers_js(bundle, *asked), strict=True):
        model = runtime.open(bundle, variant=dtype)
        expected = model.logits(TEXTS)
        assert np.abs(expected).max() > 0.01
        assert np.abs(np.array(answer["logits"]) - expected).max() <= 1e-4
        assert np.abs(model.use("lora").logits(TEXTS) - expected).max() > 1e-3
