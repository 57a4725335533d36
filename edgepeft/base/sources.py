"""Where in a source the transformers model lies, which class reads it, and what sentence-transformers says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..embedding.folder import MODULES, is_sentence_folder, read_sentence_folder, transformer_folder
from ..embedding.modules import EmbeddingModules
from ..errors import InputError
from .task import SPEECH

#: What is fetched of a Hugging Face repository that sentence-transformers wrote, beside the model itself.
_SENTENCE_FILES = ("*.json", "[0-9]*_*/*.json", "[1-9]*_*/*.safetensors", "[1-9]*_*/pytorch_model.bin")


def sentence_folder(source: str) -> Path | None:
    """The folder of a source that sentence-transformers wrote, fetched where it is a Hugging Face id; else ``None``."""
    folder = Path(source)
    if folder.is_dir():
        return folder if (folder / MODULES).is_file() else None
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    found = cached_file(
        source, MODULES, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if found is None else Path(snapshot_download(source, allow_patterns=list(_SENTENCE_FILES)))


def model_source(source: str) -> str:
    """What ``from_pretrained`` takes for a source: itself, or the folder inside it that holds the transformers model."""
    folder = Path(source)
    return transformer_folder(folder) if folder.is_dir() else source


def embeds_texts(source: str) -> bool:
    """Whether sentence-transformers saved the source as a model that embeds texts."""
    folder = sentence_folder(source)
    return folder is not None and is_sentence_folder(folder)


def embedding_of(source: str, task: str) -> EmbeddingModules | None:
    """How a source's texts are embedded, where its task is that and sentence-transformers wrote it."""
    folder = sentence_folder(source) if task == "feature-extraction" else None
    return None if folder is None else read_sentence_folder(folder)


def model_class(config: Any, task: str, *, sentence: bool = False) -> Any:
    """The class that reads a model for a task.

    Args:
        config: The model's configuration.
        task: The task, as Hugging Face names it.
        sentence: Whether sentence-transformers reads it: of an encoder-decoder it takes the encoder alone.

    Raises:
        InputError: transformers has no encoder by itself for this model.
    """
    import transformers
    from optimum.exporters.tasks import TasksManager

    if task == "feature-extraction":
        name = (getattr(config, "architectures", None) or [""])[0]
        if name.endswith("EncoderModel") and hasattr(transformers, name):
            return getattr(transformers, name)
        if sentence and getattr(config, "is_encoder_decoder", False):
            name = f"{type(config).__name__.removesuffix('Config')}EncoderModel"
            if not hasattr(transformers, name):
                raise InputError(
                    f"{config.model_type} is an encoder-decoder, and transformers has no {name} to embed texts with"
                )
            return getattr(transformers, name)
    if task == SPEECH:  # optimum asks which: another class reads wav2vec 2.0 (CTC)
        return transformers.AutoModelForSpeechSeq2Seq
    return TasksManager.get_model_class_for_task(task)
