"""Tiny random models of every supported architecture, and their captured bases, made once a session.

Nothing is downloaded. Bases are shared: graph edits copy the graph, so no test can change what another one sees.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from figures import Figures
from longest_first import (  # noqa: F401 - pytest finds its hooks here
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_sessionfinish,
)

# Before any Hugging Face library or ONNX Runtime is imported: tests never look for a network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    from edgepeft.base.base import Base


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-methods",
        action="store_true",
        help="Record what PEFT's methods measure in docs/methods.json (figures.py).",
    )
    parser.addoption(
        "--record-seconds",
        action="store_true",
        help="Record which modules take long in tests/seconds.json, which orders them (longest_first.py).",
    )


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """What this session measured of PEFT's methods; written at its end where that was asked for."""
    found = Figures(record=bool(request.config.getoption("--record-methods")))
    yield found
    if found.record and found.found:
        from test_methods_bake import expected_figures

        found.write(expected_figures())


@pytest.fixture
def note(request: pytest.FixtureRequest, figures: Figures) -> Callable[[str, str, str, float], None]:
    """``note(peft_type, base, way, difference)``: a figure of this test."""
    test = f"{Path(request.node.path).name}::{request.node.originalname}"
    return lambda peft_type, base, way, difference: figures.note((peft_type, base, way), difference, test)


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
#: Architecture → (config class less "Config", what its config takes beyond SIZES).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {"type_vocab_size": 2, "num_hidden_layers": 2}),
    "roberta": ("Roberta", {"type_vocab_size": 1, "bos_token_id": 2, "eos_token_id": 3}),
    "distilbert": ("DistilBert", {}),
    "electra": ("Electra", {"embedding_size": 24, "type_vocab_size": 2}),  # narrower: embeddings_project is used
    "mpnet": ("MPNet", {"relative_attention_num_buckets": 32, "bos_token_id": 2, "eos_token_id": 3}),
    "deberta-v2": (
        "DebertaV2",
        {
            "num_hidden_layers": 2,  # positions meet the query and key of every layer in one packed matrix
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
        },
    ),
    "deberta": (
        "Deberta",
        {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "max_relative_positions": 16,
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
        },
    ),
}
HEADS = {
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "fill-mask": "ForMaskedLM",
    "feature-extraction": "Model",
}
WORDS = [
    "the",
    "a",
    "film",
    "book",
    "was",
    "is",
    "very",
    "not",
    "good",
    "bad",
    "great",
    "poor",
    "fine",
    "awful",
    "plot",
    "end",
    ".",
    ",",
]


def _vocabulary(architecture: str) -> list[str]:
    # RoBERTa-like models number positions from pad_token_id + 1 on, so there the pad token is not token 0.
    first = ["[UNK]", "[PAD]"] if architecture in {"roberta", "mpnet"} else ["[PAD]", "[UNK]"]
    return [*first, "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{i}" for i in range(20))]


def save_tokenizer(folder: Path, vocabulary: list[str], max_length: int = 32) -> None:
    """A WordPiece tokenizer as ``tokenizer.json`` and ``tokenizer_config.json``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, vocabulary.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def randomize(module: Any, seed: int, scale: float = 0.2) -> None:
    """Give every parameter numbers of its own: matrices around 0, vectors (biases, norms) around what they hold."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)


def build_model(
    folder: Path,
    architecture: str = "bert",
    task: str = "text-classification",
    *,
    labels: int = 3,
    default_init: bool = False,
    encoder_only: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    max_length: int = 32,
    sizes: tuple[tuple[str, int], ...] = (),
) -> Path:
    """Write a tiny model and its tokenizer to ``folder``.

    ``default_init`` leaves PyTorch's own initialisation (all biases zero, all norms one); ``encoder_only`` saves no head,
    so the head is fresh when the folder is loaded for ``task``.
    """
    import torch
    import transformers

    prefix, extra = ARCHITECTURES[architecture]
    vocabulary = _vocabulary(architecture)
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=len(vocabulary), pad_token_id=vocabulary.index("[PAD]"), **{**SIZES, **extra, **dict(sizes)}
    )
    if HEADS[task].endswith("Classification") and not encoder_only:
        config.num_labels = labels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, prefix + ("Model" if encoder_only else HEADS[task]))(config)
    if not default_init:
        randomize(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(folder, vocabulary, max_length)
    return folder


@pytest.fixture(scope="session", autouse=True)
def each_model_is_traced_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """See traced_once.py; unit tests trace nothing, and do without its imports."""
    if any("unit" not in item.path.parts for item in request.session.items):
        import traced_once

        own = tmp_path_factory.getbasetemp()
        # pytest-xdist's processes have folders of their own below the one of the run.
        traced_once.install((own.parent if hasattr(request.config, "workerinput") else own) / "traced")


Models = Callable[..., Path]
Bases = Callable[..., "Base"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """``models(architecture, task, **options)``: the folder of a tiny model, written once a session."""
    made: dict[tuple[Any, ...], Path] = {}

    def get(architecture: str = "bert", task: str = "text-classification", **options: Any) -> Path:
        key = (architecture, task, *sorted(options.items()))
        if key not in made:
            made[key] = build_model(tmp_path_factory.mktemp(f"{architecture}-{task}"), architecture, task, **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def bases(models: Models) -> Bases:
    """``bases(architecture, task, **options)``: the captured base of a tiny model, traced once a session."""
    from edgepeft.pipeline import capture

    made: dict[tuple[Any, ...], Base] = {}

    def get(architecture: str = "bert", task: str = "text-classification", **options: Any) -> Base:
        key = (architecture, task, *sorted(options.items()))
        if key not in made:
            made[key] = capture(models(architecture, task, **options), task=task)
        return made[key]

    return get


def save_lora(
    folder: Path,
    model: Path | str,
    *,
    task: str = "text-classification",
    seed: int = 1,
    num_labels: int | None = None,
    scale: float = 0.1,
    record: Mapping[str, Any] | None = None,
    prepare: Callable[[Any], None] | None = None,
    **options: Any,
) -> Path:
    """A PEFT LoRA checkpoint over ``model`` whose trained numbers are all random, as PEFT itself saves it.

    Everything that PEFT would train is changed, so a tensor that is ignored shows. DoRA's magnitudes stay positive.
    """
    import torch
    from optimum.exporters.tasks import TasksManager
    from peft import LoraConfig, get_peft_model

    auto = TasksManager.get_model_class_for_task(task)
    options.setdefault("r", 4)
    options.setdefault("lora_alpha", 6)
    options.setdefault("target_modules", ["query", "value"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # a head of another size is random too
        base = auto.from_pretrained(
            model, **({} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True})
        )
        wrapped = get_peft_model(base, LoraConfig(**options))
    if prepare is not None:
        prepare(wrapped)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * scale
                parameter.add_(noise.abs() if "magnitude" in name else noise)
    wrapped.save_pretrained(folder)
    if record is not None:
        (folder / "edgepeft_adapter.json").write_text(json.dumps(dict(record)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def checkpoints(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT checkpoints over the tiny BERT: plain, a head of five labels with names, DoRA, and B left at zero."""
    folder, bert = tmp_path_factory.mktemp("checkpoints"), models("bert")
    return {
        "plain": save_lora(folder / "plain", bert),
        "head": save_lora(
            folder / "head", bert, seed=2, r=2, target_modules=["query", "dense"], modules_to_save=["classifier"],
            num_labels=5, record={"labels": ["a", "b", "c", "d", "e"]},
        ),
        "dora": save_lora(folder / "dora", bert, seed=3, use_dora=True, target_modules=["value"]),
        "untrained": save_lora(folder / "untrained", bert, scale=0.0),
    }  # fmt: skip


@pytest.fixture(scope="session")
def bundle(bases: Bases, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny BERT with the adapters plain, head and dora and slots at every linear site; do not change it."""
    from edgepeft.pipeline import add_slots, read_adapter, write_bundle

    base = bases("bert")
    adapters = [read_adapter(checkpoints[name], name=name, weights=base.weight) for name in ("plain", "head", "dora")]
    slotted = add_slots(base, adapters, reserve="all-linear")
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bert", base, slotted, adapters).path


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``bundle`` that the test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "own"))


def ragged(
    base_or_bundle: Any, shapes: tuple[tuple[int, int], ...] = ((2, 9), (3, 17), (1, 5))
) -> list[dict[str, Any]]:
    """Padded batches that fit a base."""
    from edgepeft.base.ragged import ragged_batches

    config = base_or_bundle.config
    names = [value.name for value in base_or_bundle.graph.graph.inputs]
    return ragged_batches(
        vocab=config["vocab_size"],
        pad_id=config["pad_token_id"],
        input_names=names,
        max_length=base_or_bundle.max_length,
        shapes=shapes,
    )


def all_equal(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Whether two results hold the same bits under the same names."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
