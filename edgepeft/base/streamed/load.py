"""The PyTorch model of a checkpoint without its numbers: its structure, for what the numbers are read into layer by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...adapters.folder_text import FolderText
from ...adapters.layout import conv1d_weights, expert_stacks
from ...errors import CaptureError
from ..identity import hash_weights
from ..load import Loaded, described, quiet
from ..remote_code import trusted
from .checkpoint import INDEX, SINGLE, StoredCheckpoint, open_checkpoint, widen


class NotStreamedError(CaptureError):
    """A base whose numbers cannot be read tensor by tensor; the message says why, and it is read whole instead."""


@dataclass(frozen=True)
class LoadedInPlace:
    """A model without numbers, and the numbers in their files by parameter, in PyTorch's layout."""

    loaded: Loaded
    arrays: Mapping[str, np.ndarray]


def stored_folder(source: str | Path) -> Path:
    """The folder of a base that has safetensors files; :class:`NotStreamedError` for any other base."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=patterns))
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            raise NotStreamedError(f"its files cannot be fetched ({str(error).strip().splitlines()[0]})") from error
    if not any((folder / name).is_file() for name in (INDEX, SINGLE)):
        raise NotStreamedError(f"{source} has no safetensors files")
    return folder


def load_in_place(
    source: str | Path,
    *,
    texts: Mapping[str, FolderText] = MappingProxyType({}),
    announce: Callable[[str], None] = lambda message: None,
) -> LoadedInPlace:
    """Load a language model's structure, and map its numbers.

    Args:
        source: A folder or a Hugging Face id.
        texts: What adapters' folders say about text, by name.
        announce: Is called with a line of text for each limit that was chosen.

    Returns:
        The model, whose parameters are zeros that take no memory, and the stored numbers. Its identity is the one that
        :func:`~edgepeft.base.load.load_model` gives: over the numbers as float32.

    Raises:
        InputError: A file of the checkpoint is missing, truncated or damaged.
        NotStreamedError: Names or shapes differ from the model's, or the model needs its numbers at once.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = stored_folder(source)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted())
            if getattr(config, "quantization_config", None):
                raise NotStreamedError("it is stored in few bits")
            if getattr(config, "text_config", None) is not None:
                raise NotStreamedError("it is a part of a larger model")
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted())
            model.tie_weights()
            _generation_defaults(model, folder)
    # Code of a model that reads its numbers while it is built fails in any of these ways; held in memory it may well work.
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotStreamedError(f"transformers cannot build it without numbers ({first})") from error
    model = model.eval()
    if expert_stacks(model):
        raise NotStreamedError("its experts lie in one tensor for all")
    arrays = _arrays(model, open_checkpoint(folder))
    _empty(model)
    prefix = f"{model.base_model_prefix}."
    identity = hash_weights((name.removeprefix(prefix), _Pieces(array)) for name, array in arrays.items())
    loaded = described(model, str(source), "text-generation", identity=identity, texts=texts, announce=announce)
    return LoadedInPlace(loaded, arrays)


class _Pieces:
    """A stored array as float32, in pieces of rows."""

    PIECE = 1 << 22

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape = array, array.shape

    def __iter__(self) -> Iterator[np.ndarray]:
        step = max(1, self.PIECE // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            yield widen(self._array[start : start + step])


def _generation_defaults(model: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def _arrays(model: Any, stored: StoredCheckpoint) -> dict[str, np.ndarray]:
    """The stored numbers of each parameter."""
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
    }
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers()}
    prefix = f"{model.base_model_prefix}."
    whole = any(name.startswith(prefix) for name in stored.arrays)
    arrays = stored.arrays if whole else {f"{prefix}{name}": array for name, array in stored.arrays.items()}
    other = [
        name
        for name in arrays
        if name not in parameters
        and name not in tied
        and name not in buffers
        and not any(p.search(name) for p in ignored)
    ]
    lost = [name for name in parameters if name not in arrays]
    if other or lost or not parameters:
        raise NotStreamedError(
            f"the names in its files are not those of {type(model).__name__}: {(lost or other or ['none'])[0]} is only in "
            f"{'the model' if lost else 'the files'}"
        )
    for name, shape in parameters.items():
        if arrays[name].shape != shape:
            raise CaptureError(
                f"{stored.folder}: {name} has shape {list(arrays[name].shape)}, its config asks for {list(shape)}"
            )
    return {name: arrays[name] for name in parameters}


def _empty(model: Any) -> None:
    """Give every parameter zeros that take the memory of one number."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None:
                empty = made.setdefault(
                    id(parameter), torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
                )
                module._parameters[leaf] = empty


def linear_arrays(model: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``arrays`` as linear maps ``[out, in]``, without reading them; see :func:`edgepeft.adapters.layout.as_linear`."""
    turned = conv1d_weights(model)
    return {name: array.T if name in turned else array for name, array in arrays.items()}
