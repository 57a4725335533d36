"""A PEFT checkpoint: its config and its tensors, read without torch.

Each of its files is opened once, by :func:`read_checkpoint`; what is hashed is what was read. Whoever needs the checkpoint
is given the :class:`Checkpoint`, and functions that take a path take one as well (:data:`Source`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AdapterError, InputError, MissingExtraError
from .folder_text import NO_FOLDER_TEXT, FolderText, read_folder_text
from .layouts import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_gathered,
    refuse_file,
    refuse_folder,
    refuse_foreign_config,
    refuse_foreign_tensors,
    refuse_weightless,
    unwrapped,
)
from .patterns import check_patterns
from .peft_config import read_config, read_record

#: What edgepeft writes beside an adapter that it trained.
RECORD_NAME = "edgepeft_adapter.json"

#: Most bytes of a checkpoint's tensors, and most characters of a tensor's name.
MAX_WEIGHTS_BYTES = 4 * 2**30
MAX_NAME = 1024

#: PEFT wraps the model twice before the module paths of the base begin.
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Checkpoint:
    """A PEFT checkpoint. ``tensors`` are keyed as PEFT does, less its ``base_model.model.``; float32 or integer."""

    path: Path
    source: str
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    #: The same arrays by the names that PEFT itself gives them, which is how PEFT loads them.
    stored: Mapping[str, np.ndarray]
    #: Of the weights file, as hex digits.
    sha256: str
    #: What edgepeft recorded when it trained the adapter, empty for a foreign one.
    record: Mapping[str, Any]
    #: What its folder says about text: tokenizer, special tokens, chat templates, generation defaults.
    text: FolderText = NO_FOLDER_TEXT
    #: The task that was asked for (``PATH#task=2``) of a checkpoint that holds several.
    task: int | None = None

    @property
    def peft_type(self) -> str:
        """The method, in PEFT's spelling (``LORA``)."""
        return str(self.config.get("peft_type", "")).upper()

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels of the head it brings, where edgepeft trained it."""
        labels = self.record.get("labels")
        return tuple(labels) if labels else None


#: Where a checkpoint is, or the checkpoint itself once it was read.
Source = str | Path | Checkpoint


def source_of(checkpoint: Source) -> str:
    """How a checkpoint was named: what messages and manifests call it."""
    return checkpoint.source if isinstance(checkpoint, Checkpoint) else str(checkpoint)


def _read_weights(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """All tensors of a safetensors file, and its sha256; bfloat16 and float16 are widened to float32, others keep their type."""
    try:
        import ml_dtypes
        from safetensors import SafetensorError, deserialize
    except ImportError as error:
        raise MissingExtraError(f"reading {path.name} needs: pip install 'edgepeft[tools]' ({error})") from error

    floats = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
    others = {"I64": np.int64, "I32": np.int32, "U8": np.uint8, "I8": np.int8, "BOOL": np.bool_}
    try:
        size = path.stat().st_size
        if size > MAX_WEIGHTS_BYTES:
            raise AdapterError(f"{path} has {size:,} bytes; adapters of at most {MAX_WEIGHTS_BYTES:,} are read")
        content = path.read_bytes()
        # The library itself bounds the header and checks each tensor's place and size against the file's.
        entries = deserialize(content)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file (truncated or damaged?): {error}") from error
    tensors: dict[str, np.ndarray] = {}
    for name, info in entries:
        if not 0 < len(name) <= MAX_NAME:
            raise AdapterError(f"{path}: a tensor's name has {len(name):,} characters, 1 to {MAX_NAME:,} are read")
        dtype = floats.get(info["dtype"]) or others.get(info["dtype"])
        if dtype is None:
            raise AdapterError(f"{path}: tensor {name} has type {info['dtype']}, which no adapter here uses")
        array = np.frombuffer(info["data"], dtype=dtype).reshape(info["shape"])
        tensors[name] = array.astype(np.float32) if info["dtype"] in floats else array
    return tensors, hashlib.sha256(content).hexdigest()


def _fetch(repo: str) -> Path:
    """The local snapshot of a Hugging Face adapter repository; ``HF_HUB_OFFLINE`` is honoured by the library."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(f"fetching {repo} needs: pip install 'edgepeft[tools]' ({error})") from error
    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.jinja"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AdapterError(
            f"adapter {repo!r} is neither a local folder nor a Hugging Face id that can be fetched: {first}"
        ) from error


def read_checkpoint(source: Source) -> Checkpoint:
    """The PEFT checkpoint in a folder or behind a Hugging Face id; ``#task=N`` behind either names one of its tasks.

    One that was read already is given back as it is. Raises :class:`AdapterError` where a file is missing or damaged, and
    for pickle checkpoints, which are never opened.
    """
    if isinstance(source, Checkpoint):
        return source
    where, task = split_task(source)
    path = Path(where)
    if not path.is_dir():
        if path.exists():
            raise refuse_file(path)
        path = _fetch(where)
    if not (path / CONFIG_NAME).is_file():
        raise refuse_folder(path)
    config = read_config(path / CONFIG_NAME)
    refuse_foreign_config(path / CONFIG_NAME, config)
    weights = path / WEIGHTS_NAME
    if not weights.is_file():
        raise refuse_weightless(path)
    record = path / RECORD_NAME
    read, sha256 = _read_weights(weights)
    refuse_foreign_tensors(weights, read)
    check_gathered(read, weights)
    stored = unwrapped(read, weights)
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
    check_patterns(config, _modules(tensors), str(path / CONFIG_NAME))
    return Checkpoint(
        path=path,
        source=str(source),
        config=config,
        tensors=tensors,
        stored=stored,
        sha256=sha256,
        record=read_record(record) if record.is_file() else {},
        text=read_folder_text(path),
        task=task,
    )


def _modules(tensors: Iterable[str]) -> set[str]:
    """What may be the paths of modules and parameters in the names of tensors: each without its last parts."""
    return {".".join(name.split(".")[:-end]) for name in tensors for end in (1, 2, 3)} - {""}


_TASK = re.compile(r"(?P<path>.+)#task=(?P<task>.*)", re.DOTALL)


def split_task(source: str | Path) -> tuple[str, int | None]:
    """``PATH#task=2`` as ``("PATH", 2)``, anything else as it is; a folder of that very name is a folder.

    Raises :class:`InputError` where no number follows.
    """
    text = str(source)
    match = _TASK.fullmatch(text)
    if match is None or Path(text).exists():
        return text, None
    if not re.fullmatch(r"[0-9]+", match["task"]):
        raise InputError(
            f"{text}: after #task= stands the number of one task of the checkpoint, for example {match['path']}#task=0"
        )
    return match["path"], int(match["task"])
