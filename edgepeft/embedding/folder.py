"""Folders that sentence-transformers wrote: ``modules.json`` and what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import InputError, MissingExtraError
from ..strict_json import kind, read_json, read_object
from .modules import ACTIVATIONS, POOLING, Dense, EmbeddingModules, LayerNorm, Module, Normalize, Pooling

MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
#: Names of the first module's settings: newer ones first, then those of old versions.
_TRANSFORMER_SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_KNOWN = "Transformer, Pooling, Dense, LayerNorm, Normalize and Dropout are taken"


def is_sentence_folder(source: str | Path) -> bool:
    """Whether ``source`` is a folder in which sentence-transformers saved a model that embeds texts."""
    folder = Path(source)
    return (folder / MODULES).is_file() and _model_type(folder) == "SentenceTransformer"


def transformer_folder(source: str | Path) -> str:
    """Where the transformers model of ``source`` lies: the folder of its first module, else ``source`` itself.

    Older versions of sentence-transformers wrote the model into a folder of its own (``0_Transformer``).
    """
    folder = Path(source)
    if not (folder / MODULES).is_file():
        return str(source)
    inner = folder / _listed(folder)[0]["path"]
    return str(source) if inner == folder else str(inner)


def read_sentence_folder(source: str | Path) -> EmbeddingModules | None:
    """What a folder's modules do to hidden states; ``None`` for a folder that sentence-transformers did not write.

    Args:
        source: The folder of a model, or of an adapter that ``SentenceTransformer.save`` wrote.

    Returns:
        Pooling and what follows it, prompts, and the longest text in tokens.

    Raises:
        InputError: A module is not supported, or a file is damaged; it is named.
        MissingExtraError: The weights of a module need safetensors or torch.

    Example:
        >>> read_sentence_folder("all-MiniLM-L6-v2").describe()
        ('mean', 'normalize')
    """
    folder = Path(source)
    if not (folder / MODULES).is_file():
        return None
    kind_of_model = _model_type(folder)
    if kind_of_model != "SentenceTransformer":
        raise InputError(
            f"{folder} is a {kind_of_model} of sentence-transformers, which gives no one vector a text"
            + ("; export it with --task text-classification" if kind_of_model == "CrossEncoder" else "")
        )
    listed = _listed(folder)
    settings = _transformer_settings(folder / listed[0]["path"])
    _check_transformer(settings, folder)
    pooling, modules, notes = _after(folder, listed[1:])
    model = read_object(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
    prompts = _prompts(model, folder / _SETTINGS)
    default = model.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise InputError(
            f"{folder / _SETTINGS}: default_prompt_name {default!r} is not one of its prompts: {', '.join(prompts) or 'none'}"
        )
    return EmbeddingModules(
        pooling=pooling,
        modules=modules,
        prompts=tuple(prompts.items()),
        default_prompt=default,
        max_length=_limit(settings, folder),
        lower_case=settings.get("do_lower_case") is True,
        notes=notes,
    )


def _model_type(folder: Path) -> str:
    path = folder / _SETTINGS
    found = read_object(path).get("model_type", "SentenceTransformer") if path.is_file() else "SentenceTransformer"
    return str(found)


def _listed(folder: Path) -> list[dict[str, str]]:
    """The entries of ``modules.json``: each with a ``type`` and a ``path`` inside the folder."""
    path = folder / MODULES
    found = read_json(path)
    if not isinstance(found, list) or not found:
        raise InputError(f"{path} must hold a list of modules, found {kind(found)}")
    entries = []
    for entry in found:
        where = entry.get("path") if isinstance(entry, Mapping) else None
        type_ = entry.get("type") if isinstance(entry, Mapping) else None
        if not isinstance(where, str) or not isinstance(type_, str):
            raise InputError(f"{path}: each module needs a path and a type, found {str(entry)[:200]}")
        pure = PurePosixPath(where)
        if pure.is_absolute() or ".." in pure.parts or "\\" in where or ":" in where:
            raise InputError(f"{path}: module path {where!r} leaves the folder")
        entries.append({"path": where, "type": type_})
    first = entries[0]["type"].rpartition(".")[2]
    if first != "Transformer":
        raise InputError(f"{path}: the first module is {entries[0]['type']}, which is not supported; {_KNOWN}")
    return entries


def _transformer_settings(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _TRANSFORMER_SETTINGS if (folder / name).is_file()), None)
    return {} if path is None else read_object(path)


def _check_transformer(settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse a first module that gives something else than a hidden state for each token of a text."""
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise InputError(
            f"{folder}: its transformer_task is {task!r}; embeddings are exported of feature-extraction only"
        )
    modalities = settings.get("modality_config")
    if modalities is None:
        return
    text = modalities.get("text") if isinstance(modalities, Mapping) else None
    if "message" in modalities or not isinstance(text, Mapping):
        raise InputError(
            f"{folder}: its texts go through a chat template, or it takes no texts (modality_config: "
            f"{', '.join(map(str, modalities))}); only models that read texts as they are can be exported"
        )
    output = text.get("method_output_name")
    name = output[0] if isinstance(output, list) and len(output) == 1 else output
    if text.get("method") != "forward" or name != "last_hidden_state":
        raise InputError(
            f"{folder}: its texts go through {text.get('method')!r}, of which {output!r} is taken; only the "
            "last_hidden_state of forward can be exported"
        )


def _after(folder: Path, listed: list[dict[str, str]]) -> tuple[Pooling, tuple[Module, ...], tuple[str, ...]]:
    """The modules behind the first: one that pools, then any of those that change a vector."""
    path = folder / MODULES
    pooling: Pooling | None = None
    modules: list[Module] = []
    notes: list[str] = []
    for entry in listed:
        name = entry["type"].rpartition(".")[2]
        where = folder / entry["path"]
        known = entry["type"].startswith("sentence_transformers.")
        if known and name == "Dropout":
            continue  # does nothing outside training
        if known and name == "Pooling" and pooling is None:
            pooling = _pooling(where / "config.json")
        elif known and name == "Normalize" and pooling is not None:
            _check_vectors(where / "config.json")
            modules.append(Normalize())
        elif known and name == "Dense" and pooling is not None:
            modules.append(_dense(where, notes))
        elif known and name == "LayerNorm" and pooling is not None:
            held = _weights(where)
            modules.append(LayerNorm(_tensor(held, "norm.weight", where), _tensor(held, "norm.bias", where)))
        else:
            raise InputError(f"{path}: module {entry['type']} is not supported in this place; {_KNOWN}, in this order")
    if pooling is None:
        raise InputError(f"{path} lists no Pooling, so nothing says how tokens become one vector")
    return pooling, tuple(modules), tuple(notes)


def _pooling(path: Path) -> Pooling:
    config = read_object(path)
    found = config.get("pooling_mode")
    if found is None:
        found = [mode for key, mode in POOLING.items() if config.get(key)] or ["mean"]
    modes = (found,) if isinstance(found, str) else tuple(found)
    unknown = [mode for mode in modes if mode not in POOLING.values()]
    if unknown or not modes:
        raise InputError(
            f"{path}: pooling_mode {unknown or modes} is unknown; known are: {', '.join(POOLING.values())}"
        )
    return Pooling(modes=modes, include_prompt=config.get("include_prompt", True) is not False)


def _check_vectors(path: Path) -> Mapping[str, Any]:
    """A module's settings; refused where it works on something else than the pooled vector."""
    config = read_object(path) if path.is_file() else {}
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise InputError(f"{path}: {key} is {config[key]!r}; only modules of the pooled vector can be exported")
    return config


def _dense(folder: Path, notes: list[str]) -> Dense:
    path = folder / "config.json"
    config = _check_vectors(path)
    said = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = str(said).rpartition(".")[2]
    if not str(said).startswith("torch."):
        # The library imports nothing but torch's own unless it is told to trust the code, and takes Tanh then.
        notes.append(f"{path}: activation {said!r} is not torch's; Tanh is used, as sentence-transformers does")
        activation = "Tanh"
    if activation not in ACTIVATIONS:
        raise InputError(f"{path}: activation {said!r} is not supported; {', '.join(ACTIVATIONS)} are")
    held = _weights(folder)
    weight = _tensor(held, "linear.weight", folder)
    bias = _tensor(held, "linear.bias", folder) if config.get("bias", True) else None
    residual: np.ndarray | bool = False
    if config.get("use_residual"):
        residual = True if weight.shape[0] == weight.shape[1] else _tensor(held, "residual.weight", folder)
    return Dense(weight=weight, bias=bias, activation=activation, residual=residual)


def _weights(folder: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a module in float32: ``model.safetensors``, or what old versions wrote, read without unpickling code."""
    path, old = folder / "model.safetensors", folder / "pytorch_model.bin"
    if not path.is_file() and not old.is_file():
        raise InputError(f"{folder} holds no weights (model.safetensors, or pytorch_model.bin)")
    try:
        if path.is_file():
            from safetensors.numpy import load_file

            held = load_file(path)
        else:
            import torch

            held = {name: tensor.float().numpy() for name, tensor in torch.load(old, "cpu", weights_only=True).items()}
    except ImportError as error:
        extra = "tools" if path.is_file() else "export"
        raise MissingExtraError(f"reading {folder} needs: pip install 'edgepeft[{extra}]' ({error})") from error
    except Exception as error:  # both libraries raise types of their own over damaged files
        raise InputError(f"{path if path.is_file() else old} cannot be read: {str(error)[:300]}") from error
    return {name: np.asarray(array).astype(np.float32) for name, array in held.items()}


def _tensor(held: Mapping[str, np.ndarray], name: str, folder: Path) -> np.ndarray:
    if name not in held:
        raise InputError(f"{folder}: its weights lack {name}; they hold {', '.join(sorted(held)) or 'nothing'}")
    return held[name]


def _prompts(model: Mapping[str, Any], path: Path) -> dict[str, str]:
    found = model.get("prompts") or {}
    if not isinstance(found, Mapping) or not all(text is None or isinstance(text, str) for text in found.values()):
        raise InputError(f"{path}: prompts must be texts by name, found {str(found)[:200]}")
    return {name: text or "" for name, text in found.items()}


def _limit(settings: Mapping[str, Any], folder: Path) -> int | None:
    """``max_seq_length``, or what newer versions write for the tokenizer."""
    found = settings.get("max_seq_length")
    if found is None:
        tokenizer = settings.get("processor_kwargs", settings.get("tokenizer_args"))
        found = tokenizer.get("model_max_length") if isinstance(tokenizer, Mapping) else None
    if found is None:
        return None
    if type(found) is not int or found < 1:
        raise InputError(f"{folder}: max_seq_length must be a whole number of at least 1, found {found!r}")
    return found
