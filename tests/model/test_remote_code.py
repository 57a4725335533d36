"""Bases that come with Python code of their own: refused by name, never a question; run where the user agrees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import save_tokenizer

from edgepeft import runtime
from edgepeft.base.load import load_model
from edgepeft.base.remote_code import trusted
from edgepeft.errors import InputError
from edgepeft.pipeline import export

_CODE = """
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

(Path(__file__).parent / "ran").touch()


class OwnConfig(PreTrainedConfig):
    model_type = "own-of-edgepeft-tests"

    def __init__(self, hidden_size=16, vocab_size=12, **options):
        super().__init__(**options)
        self.hidden_size, self.vocab_size = hidden_size, vocab_size


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **options):
        return BaseModelOutput(last_hidden_state=torch.tanh(self.mix(self.words(input_ids))))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    from safetensors.numpy import save_file

    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(_CODE)
    config = {
        "model_type": "own-of-edgepeft-tests", "architectures": ["OwnModel"], "hidden_size": 16, "vocab_size": 12,
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(1)
    shapes = {"words.weight": (12, 16), "mix.weight": (16, 16), "mix.bias": (16,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"])
    return folder


def test_refused_by_name_and_nothing_is_asked(own: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"comes with Python code of its own.*--trust-remote-code"):
        load_model(own)
    # A terminal's answer lies ready: who asks gets a yes, and would run the code.
    done = subprocess.run(
        [sys.executable, "-m", "edgepeft", "export", "--model", str(own), "--out", str(tmp_path / "bundle")],
        input="y\n" * 5, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Do you wish to run" not in done.stdout + done.stderr
    assert "--trust-remote-code" in done.stderr
    assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.rglob("ran"))


def test_with_consent_it_is_exported(own: Path, tmp_path: Path) -> None:
    bundle = export(own, {}, tmp_path / "bundle", slots="all-linear", trust_remote_code=True).bundles[0]
    assert trusted() is False  # for this export only
    assert bundle.manifest.base.architecture == "OwnModel"
    with runtime.open(bundle.path, threads=1) as model:
        assert model.embed("good").shape == (16,)
    with pytest.raises(InputError, match="comes with Python code"):
        load_model(own)
