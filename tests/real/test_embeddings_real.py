"""all-MiniLM-L6-v2 as sentence-transformers runs it: mean, length 1, and at most 256 of its 512 tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import save_lora
from sentence_folders import library, worst

from edgepeft import runtime
from edgepeft.base.tokenizer_files import CORPUS
from edgepeft.demo.assets import minilm
from edgepeft.pipeline import export

pytestmark = pytest.mark.real

#: float32 on both sides; numbers of vectors of length 1. Seen: 2.1e-7.
TOLERANCE = 1e-5
LONG = "The package arrived two days late and the box was torn, yet nothing inside was damaged. " * 40
TEXTS = [*CORPUS, "How do I reset my password?", LONG, LONG[1000:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files with the settings that the model is published with."""
    work = tmp_path_factory.mktemp("st") / "all-MiniLM-L6-v2"
    shutil.copytree(minilm(), work)
    types = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(zip(paths, types, strict=True))
    ]
    (work / "modules.json").write_text(json.dumps(modules))
    (work / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (work / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (work / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256, "do_lower_case": False}))
    return work


def test_minilm_is_the_librarys(folder: Path, tmp_path: Path) -> None:
    adapter = save_lora(
        tmp_path / "lora", folder, task="feature-extraction", task_type="FEATURE_EXTRACTION", scale=0.02
    )
    said: list[str] = []
    bundle = export(folder, {"domain": adapter}, tmp_path / "bundle", announce=said.append).bundles[0]
    assert bundle.manifest.max_length == 256
    assert "texts are embedded by mean, normalize" in said
    expected = library(folder, TEXTS)
    with runtime.open(bundle.path, threads=1) as model:
        found = model.embed(TEXTS)
        assert worst(found, expected) < TOLERANCE
        assert model.truncated(TEXTS) == [len(TEXTS) - 2, len(TEXTS) - 1]
        assert model.encode(LONG)["input_ids"].shape == (1, 256)
        cut = model.embed(TEXTS, dim=128, normalize=True)
        assert worst(cut, library(folder, TEXTS, truncate_dim=128, normalize_embeddings=True)) < TOLERANCE
        adapted = model.adapter("domain").embed(TEXTS)
        assert np.allclose(np.linalg.norm(adapted, axis=1), 1, atol=1e-6)
        assert not np.allclose(adapted, expected, atol=1e-3)
