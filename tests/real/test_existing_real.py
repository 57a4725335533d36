"""SmolLM2-135M as onnxruntime-genai's builder quantizes it to 4 bits: slots and adapters on that file as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import save_lora

from edgepeft import runtime
from edgepeft.base.parity import TOLERANCE
from edgepeft.demo import assets

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_the_builders_file_takes_adapters(precision: str, tmp_path: Path) -> None:
    """Without an adapter int4 gives the file's own bits, which export checks; with one, PEFT's logits."""
    from edgepeft.pipeline import export

    pytest.importorskip("onnxruntime_genai.models.builder")
    model = assets.smollm2()
    extra = ["int4_accuracy_level=4", "int4_block_size=32", "shared_embeddings=true"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(model), "-i", str(model)]
    command += ["-o", str(tmp_path / "built"), "-p", precision, "-e", "cpu", "-c", str(tmp_path / "cache")]
    command += ["--extra_options", *extra] if precision == "int4" else []
    subprocess.run(command, capture_output=True, check=True, timeout=600)
    lora = save_lora(
        tmp_path / "lora",
        model,
        task="text-generation",
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        scale=0.03,
    )
    result = export(model, {"a": lora}, tmp_path / "bundle", onnx=tmp_path / "built" / "model.onnx")
    manifest = result.bundles[0].manifest
    # 30 layers of 7 matrices and 2 norms, the embedding that the head is tied to, and the last norm.
    expected = {"content": 61, "rounded content": 211} if precision == "int4" else {"content": 272}
    assert manifest.provenance["matched"] == expected
    assert result.capture_parity <= TOLERANCE
    assert result.parity[0].changes_output
    assert result.parity[0].max_difference <= TOLERANCE
    opened = runtime.open(tmp_path / "bundle")
    assert opened.variant == ("q4" if precision == "int4" else "fp32")
    assert opened.use("a").generate("The capital of France is", chat=False, max_new_tokens=8).tokens
