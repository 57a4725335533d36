"""How a bundle's texts are embedded: the graphs of the base and of adapters that say so, as files and entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.checkpoint import Checkpoint
from ..base.tokenizer_files import lowers_case
from ..bundle import Bundle, Embedding, GraphInput, Manifest
from ..bundle.embedding import BASE_FILE, EMBEDDING, HIDDEN, MASK, travelling
from ..embedding.folder import MODULES, read_sentence_folder
from ..embedding.modules import EmbeddingModules
from ..errors import InputError, UnsupportedAdapterError
from ._ort_format import convert_to_ort

if TYPE_CHECKING:
    from ..base.base import Base

Announce = Callable[[str], None]


def embeds(task: str, inputs: Sequence[GraphInput], outputs: Sequence[GraphInput]) -> int | None:
    """How many numbers a hidden state has, of a base whose texts can be embedded; else ``None``."""
    names = {value.name for value in inputs}
    states = next((value for value in outputs if value.name == HIDDEN), None)
    if task != "feature-extraction" or not {"input_ids", MASK} <= names or states is None or len(states.shape) != 3:
        return None
    size = states.shape[-1]
    return size if isinstance(size, int) else None


def write_base(folder: Path, modules: EmbeddingModules | None, hidden: int) -> Embedding:
    """Write the graph of a base below ``folder``; without ``modules`` it is the mean, as the library embeds such a model."""
    modules = modules or EmbeddingModules()
    target = folder / BASE_FILE
    target.parent.mkdir(exist_ok=True)
    from ..embedding.graph import embedding_bytes

    target.write_bytes(embedding_bytes(modules, hidden))
    return _entry(modules, hidden, BASE_FILE)


def contract(modules: EmbeddingModules, hidden: int) -> dict[str, Any]:
    """What an adapter's contract holds under ``embedding``."""
    from ..embedding.graph import embedding_bytes

    return travelling(_entry(modules, hidden, EMBEDDING), embedding_bytes(modules, hidden))


def _entry(modules: EmbeddingModules, hidden: int, file: str) -> Embedding:
    return Embedding(
        graph=file,
        dimension=modules.dimension(hidden),
        modules=modules.describe(),
        prompts=dict(modules.prompts),
        default_prompt=modules.default_prompt,
        include_prompt=modules.pooling.include_prompt,
        max_length=modules.max_length,
    )


def read_embedding(
    name: str,
    checkpoint: Checkpoint,
    task: str,
    tokenizer: Mapping[str, bytes],
    limit: int | None,
    announce: Announce,
) -> EmbeddingModules | None:
    """How an adapter's folder says that its texts are embedded; ``None`` where it does not, or the task is another.

    Args:
        name: The adapter's name.
        checkpoint: The adapter, whose folder ``SentenceTransformer.save`` may have written.
        task: The base's task.
        tokenizer: The base's tokenizer files by name.
        limit: Longest input of the base in tokens.
        announce: Is called with what differs from the base.

    Raises:
        InputError: A module is not supported.
        UnsupportedAdapterError: The adapter puts texts into lower case, which the base's tokenizer does not.
    """
    if task != "feature-extraction" or not (checkpoint.path / MODULES).is_file():
        return None
    try:
        modules = read_sentence_folder(checkpoint.path)
    except InputError as error:
        raise InputError(f"adapter {name!r}: {error}") from error
    assert modules is not None
    if modules.lower_case and not lowers_case(tokenizer):
        raise UnsupportedAdapterError(
            f"adapter {name!r}: {checkpoint.path} puts texts into lower case (do_lower_case in sentence_bert_config.json), and the "
            "base's tokenizer does not. Give the base's folder the same setting"
        )
    for note in modules.notes:
        announce(f"adapter {name}: {note}")
    announce(f"adapter {name} embeds texts by its own modules: {', '.join(modules.describe())}{_prompted(modules)}")
    if limit is not None and modules.max_length is not None and modules.max_length > limit:
        announce(
            f"adapter {name}: its max_seq_length is {modules.max_length}, this base takes {limit} tokens; texts are cut to those"
        )
        modules = replace(modules, max_length=limit)
    return modules


def _prompted(modules: EmbeddingModules) -> str:
    if modules.default_prompt is None:
        return ""
    return f"; prompt {modules.default_prompt!r} is put before each text"


def announce_base(modules: EmbeddingModules | None, announce: Announce) -> None:
    """Say how the base embeds texts, where its folder says so."""
    if modules is None:
        return
    for note in modules.notes:
        announce(note)
    announce(f"texts are embedded by {', '.join(modules.describe())}{_prompted(modules)}")


def widened(base: Base, others: Mapping[str, Checkpoint]) -> Base:
    """``base`` with the longest input that one of its adapters asks for, as far as the model has positions.

    The base's own texts are cut to its own limit all the same, which its embedding says.
    """
    if base.embedding is None or base.max_length is None:
        return base
    longest = base.max_length
    for checkpoint in others.values():
        modules = read_sentence_folder(checkpoint.path) if (checkpoint.path / MODULES).is_file() else None
        longest = max(longest, 0 if modules is None else modules.max_length or 0)
    return replace(base, max_length=longest if base.positions is None else min(longest, base.positions))


def hidden_of(manifest: Manifest) -> int | None:
    """:func:`embeds` of a bundle."""
    return embeds(manifest.task, manifest.inputs, manifest.outputs)


def embeddings_in_ort_format(staged: Bundle) -> Manifest:
    """Convert the graphs of embeddings of a bundle that is being written to ORT format; its manifest with their new files.

    Each has its own list of the operators that a reduced build of ONNX Runtime needs, beside it.
    """
    manifest = staged.manifest

    def converted(embedding: Embedding | None) -> Embedding | None:
        if embedding is None:
            return None
        path = staged.file(embedding.graph)
        convert_to_ort([path])
        path.unlink()
        return embedding.model_copy(update={"graph": str(Path(embedding.graph).with_suffix(".ort").as_posix())})

    adapters = {
        name: entry.model_copy(update={"embedding": converted(entry.embedding)})
        for name, entry in manifest.adapters.items()
    }
    return manifest.model_copy(update={"embedding": converted(manifest.embedding), "adapters": adapters})
