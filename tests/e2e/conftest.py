"""One tiny model with three adapters, exported once a session, and the command line in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

# Before any Hugging Face library is imported: tests never look for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

LABELS = {"reviews": ["bad", "good"], "movies": ["poor", "great"], "register": ["book", "film", "plot"]}

Cli = Callable[..., Result]


def call(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """``edgepeft ARGUMENTS`` in this process; a bug (exit code 70) fails the test with its traceback."""
    from edgepeft.cli import main

    result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)
    assert result.exit_code != 70, result.stderr
    return result


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """``python -m edgepeft ARGUMENTS`` as a process of its own."""
    command = [sys.executable, "-m", "edgepeft", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def small_files(most: int) -> dict[str, Any]:
    """Options of ``subprocess`` for a process whose files may hold ``most`` bytes, as on a disk that is full.

    It keeps no bytecode: Python moves what the limit has cut short into the cache that all tests read
    (cpython issue 126606), and who imports that module next fails.
    """

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return {"preexec_fn": limit, "env": {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}}


@pytest.fixture(scope="session")
def cli() -> Cli:
    return call


@pytest.fixture(scope="session")
def encoder(models: Callable[..., Path]) -> Path:
    """A tiny BERT without a head: adapters bring their own."""
    return models("bert", encoder_only=True)


def save_adapter(
    folder: Path, model: Path, labels: list[str], *, seed: int, identity: str | None = None, **options: Any
) -> Path:
    """A PEFT LoRA checkpoint with random numbers everywhere; with ``identity`` as edgepeft records it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(labels))
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", **options}
        with warnings.catch_warnings():
            # peft 0.21 asks for a property that transformers 5.23 renamed (November 2026).
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            wrapped = get_peft_model(base, LoraConfig(**settings))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
    wrapped.save_pretrained(folder)
    record: dict[str, Any] = {"format": 1, "task": "text-classification", "labels": labels}
    if identity is not None:
        record["base_identity"] = identity
    (folder / "edgepeft_adapter.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def adapters(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three checkpoints over the tiny encoder, with two and three labels."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(root / name, encoder, labels, seed=seed)
        for seed, (name, labels) in enumerate(LABELS.items(), 1)
    }


@pytest.fixture(scope="session")
def exported(encoder: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with ``reviews`` and ``movies``. Not to be changed: see :func:`bundle`."""
    out = tmp_path_factory.mktemp("exported") / "bundle"
    pairs = [f"--adapter={name}={adapters[name]}" for name in ("reviews", "movies")]
    done = call("export", "--model", encoder, *pairs, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="session")
def webbed(exported: Path, adapters: dict[str, Path], cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with three adapters of two and three labels, fp32 and int8, with graphs for the web."""
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("web") / "bundle"))
    for arguments in (
        ["add", folder, f"--adapter=register={adapters['register']}"],
        ["quantize", folder, "--variant", "int8"],
        ["web", "prepare", folder],
    ):
        done = cli(*arguments)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may change."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def generating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny random Llama with the adapters ``wide``, ``narrow`` and ``prefix``. Not to be changed."""
    from causal import build_generating_bundle

    return build_generating_bundle(tmp_path_factory.mktemp("generating"))


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled rows for ``reviews``."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = {"good": "very good great fine film", "bad": "very poor awful bad book"}
    lines = [{"text": f"the {words[label]} {i}", "label": label} for i in range(20) for label in ("good", "bad")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
