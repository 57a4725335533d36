"""From texts to embeddings: prompts, the limit of each adapter, pooling, cuts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from ..bundle import Manifest, OwnEmbedding, OwnText
from ..bundle.embedding import EMBEDDING, HIDDEN, MASK
from ..errors import InputError
from .active import ActiveAdapter
from .engine import Engine
from .finite import require_finite
from .text import encode_rows


class EmbedOptions(TypedDict, total=False):
    """Options of embeddings, beside the texts."""

    #: A text that is put before each text, in place of the model's own prompt; ``""`` for none.
    prompt: str | None
    #: The name of one of the model's prompts (``query``).
    prompt_name: str | None
    #: Keep this many numbers, of models trained for it (Matryoshka).
    dim: int | None
    #: Whether to bring the result to length 1, after the cut.
    normalize: bool


@dataclass(frozen=True)
class _Row:
    """A text with its prompt, and how its adapter embeds it."""

    text: Any
    prompt: str
    embedding: OwnEmbedding | None
    #: Whose tokenizer reads it.
    own: OwnText

    @property
    def whole(self) -> Any:
        return self.text if not self.prompt else self.prompt + self.text


def prompt_of(embedding: OwnEmbedding | None, prompt: str | None, name: str | None) -> str:
    """The text that is put before a text: the one that is given, else the named one, else the default.

    Raises:
        InputError: There is no prompt of that name.
    """
    if prompt is not None:
        return prompt
    prompts = {} if embedding is None else embedding.says.prompts
    if name is not None:
        if name not in prompts:
            raise InputError(f"there is no prompt {name!r:.80} here; known are: {', '.join(prompts) or 'none'}")
        return prompts[name]
    default = None if embedding is None else embedding.says.default_prompt
    return "" if default is None else prompts[default]


def rows_of(texts: Sequence[Any], active: ActiveAdapter, options: EmbedOptions) -> list[_Row]:
    """Each text with its prompt, and how its adapter embeds it."""
    prompt, name = options.get("prompt"), options.get("prompt_name")
    rows = []
    for place, text in enumerate(texts):
        embedding = active.embedding_of(place)
        before = prompt_of(embedding, prompt, name)
        if before and not isinstance(text, str):
            raise InputError('a prompt is put before one text, not before a pair of texts: embed pairs with prompt=""')
        rows.append(_Row(text, before, embedding, active.text_of(place)))
    return rows


def limit_of(manifest: Manifest, embedding: OwnEmbedding | None) -> int | None:
    """Longest text in tokens."""
    limits = [manifest.max_length, None if embedding is None else embedding.says.max_length]
    return min((limit for limit in limits if limit is not None), default=None)


def truncated(engine: Engine, texts: Sequence[Any], active: ActiveAdapter, options: EmbedOptions) -> list[int]:
    """Positions of the texts that have more tokens, their prompts included, than are embedded."""
    rows = rows_of(texts, active, options)
    return [
        place
        for place, row in enumerate(rows)
        if engine.encoder_of(row.own, limit_of(engine.manifest, row.embedding)).truncated([row.whole])
    ]


def embed(
    engine: Engine,
    texts: Sequence[Any],
    active: ActiveAdapter,
    adapters: Sequence[str | None] | None,
    batch_size: int,
    options: EmbedOptions,
) -> list[np.ndarray]:
    """The embedding ``[dimension]`` of each text, as sentence-transformers' ``encode`` computes it.

    Raises:
        InputError: The bundle's task is another, or an option is wrong.
        NonFiniteError: An embedding holds NaN or infinity.
    """
    manifest = engine.manifest
    whole = active if adapters is None else engine.mixed(adapters)
    task = whole.head.task or manifest.task
    if task != "feature-extraction":
        raise InputError(f"{engine.bundle.path} is for {task}; it does not embed texts")
    rows = rows_of(texts, whole, options)
    found: list[np.ndarray | None] = [None] * len(rows)
    for limit, places in _by_limit(manifest, rows):
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            chosen = active if adapters is None else engine.mixed([adapters[place] for place in part])
            encoders = [engine.encoder_of(rows[place].own, limit) for place in part]
            inputs = encode_rows(encoders, [rows[place].whole for place in part])
            states = engine.run(inputs, chosen)[HIDDEN]
            mask = inputs[MASK]
            for members in _alike([rows[place] for place in part]):
                row = rows[part[members[0]]]
                skips = row.embedding is not None and not row.embedding.says.include_prompt
                length = encoders[members[0]].prompt_length(row.prompt) if skips else 0
                pooled = engine.embeddings.pooled(row.embedding, states[members], mask[members], length)
                for member, vector in zip(members, pooled, strict=True):
                    require_finite(vector, EMBEDDING, chosen.name_of(member), engine.variant, engine.bundle.path)
                    found[part[member]] = _cut(vector, options)
    return [vector for vector in found if vector is not None]


def _by_limit(manifest: Manifest, rows: Sequence[_Row]) -> Iterator[tuple[int | None, list[int]]]:
    """Positions of the rows that are cut to the same length: adapters may differ in it."""
    groups: dict[int | None, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(limit_of(manifest, row.embedding), []).append(place)
    yield from groups.items()


def _alike(rows: Sequence[_Row]) -> Iterable[list[int]]:
    """Positions of the rows that one graph pools in one run: of the same embedding, prompt and tokenizer."""
    groups: dict[tuple[str, str, OwnText], list[int]] = {}
    for place, row in enumerate(rows):
        key = ("" if row.embedding is None else row.embedding.sha256, row.prompt, row.own)
        groups.setdefault(key, []).append(place)
    return groups.values()


def _cut(vector: np.ndarray, options: EmbedOptions) -> np.ndarray:
    dim = options.get("dim")
    if dim is not None:
        if type(dim) is not int or not 1 <= dim <= vector.size:
            raise InputError(
                f"dim must be a whole number from 1 to {vector.size}, the numbers of an embedding; found {dim!r:.80}"
            )
        vector = vector[:dim]
    if options.get("normalize"):
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return vector
