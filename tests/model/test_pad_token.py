"""Classifiers over decoders without a padding token. Reference: PEFT on single rows, which need no padding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from causal import save_byte_tokenizer
from click.testing import CliRunner
from conftest import randomize, save_lora
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from edgepeft import runtime
from edgepeft.cli import main
from edgepeft.errors import InputError
from edgepeft.pipeline import export, validate

TEXTS = ["the film was very good", "bad", "an awful end of the book", "so"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama whose files name no padding token, and an adapter that was trained with one."""
    folder = tmp_path_factory.mktemp("pad")
    vocabulary = save_byte_tokenizer(folder / "base")
    config = json.loads((folder / "base/tokenizer_config.json").read_text(encoding="utf-8"))
    del config["pad_token"]
    (folder / "base/tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    sizes = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(sizes)
    randomize(model, 0)
    model.save_pretrained(folder / "base")
    padded = {"num_labels": 3, "task_type": "SEQ_CLS", "target_modules": ["q_proj", "v_proj"]}
    save_lora(folder / "a", folder / "base", prepare=lambda peft: setattr(peft.config, "pad_token_id", 0), **padded)  # type: ignore[arg-type]
    return {"base": folder / "base", "a": folder / "a"}


def expected(folders: dict[str, Path]) -> np.ndarray:
    base = AutoModelForSequenceClassification.from_pretrained(folders["base"], num_labels=3)
    model = PeftModel.from_pretrained(base, folders["a"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["base"])
    with torch.no_grad():
        rows = [
            model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0].numpy()
            for text in TEXTS
        ]
    return np.stack(rows)


def check(bundle: Path, folders: dict[str, Path], pad: int) -> None:
    assert json.loads((bundle / "config.json").read_text(encoding="utf-8"))["pad_token_id"] == pad
    found = runtime.open(bundle).adapter("a").logits(TEXTS)  # one ragged batch
    assert np.abs(found - expected(folders)).max() <= 1e-4
    assert validate(bundle, adapters={"a": folders["a"]}).passed


def test_nobody_names_one(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither its tokenizer nor an adapter's names one.*--pad-token TOKEN"):
        export(folders["base"], {"a": folders["a"]}, tmp_path / "bundle")


@pytest.mark.parametrize("token", ["<|endoftext|>", "0"])
def test_as_asked(token: str, folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = CliRunner().invoke(
        main,
        [
            "export",
            "--model",
            str(folders["base"]),
            "--adapter",
            f"a={folders['a']}",
            "--out",
            str(out),
            "--pad-token",
            token,
        ],
    )
    assert done.exit_code == 0, done.output
    assert "as asked (0)" in done.stderr
    check(out, folders, 0)


def test_of_the_adapters_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    own = Path(shutil.copytree(folders["a"], tmp_path / "a"))
    (own / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<|im_end|>"}), encoding="utf-8")
    said: list[str] = []
    export(folders["base"], {"a": own}, tmp_path / "bundle", announce=said.append)
    assert "padding token: <|im_end|> of adapter a (2)" in said
    check(tmp_path / "bundle", folders | {"a": own}, 2)


def test_of_the_bases_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(folders["base"], tmp_path / "base"))
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<|endoftext|>"}), encoding="utf-8")
    export(base, {"a": folders["a"]}, tmp_path / "bundle", force=True)
    check(tmp_path / "bundle", folders | {"base": base}, 0)


def test_a_token_that_is_none(folders: dict[str, Path], tmp_path: Path) -> None:
    for token in ("<none>", 100_000):
        with pytest.raises(InputError, match="is no token of"):
            export(folders["base"], {"a": folders["a"]}, tmp_path / "bundle", pad_token=token)
