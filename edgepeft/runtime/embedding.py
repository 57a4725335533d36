"""From texts to embeddings: prompts, the limit of each adapter, pooling, cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from ..bundle import Embedding, Manifest
from ..bundle.embedding import EMBEDDING, HIDDEN, MASK
from ..errors import InputError
from .active import ActiveAdapter
from .engine import Engine
from .finite import require_finite


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
    embedding: Embedding | None

    @property
    def whole(self) -> Any:
        return self.text if not self.prompt else self.prompt + self.text


def embedding_of(manifest: Manifest, active: ActiveAdapter, row: int = 0) -> Embedding | None:
    """How a row's text is embedded: as its adapter says, else as the base does; ``None`` for the mean."""
    name = active.name_of(row)
    if name is not None and name in manifest.adapters:
        return manifest.adapters[name].embedding or manifest.embedding
    return active.embedding or manifest.embedding


def prompt_of(embedding: Embedding | None, prompt: str | None, name: str | None) -> str:
    """The text that is put before a text: the one that is given, else the named one, else the default.

    Raises:
        InputError: There is no prompt of that name.
    """
    if prompt is not None:
        return prompt
    prompts = {} if embedding is None else embedding.prompts
    if name is not None:
        if name not in prompts:
            raise InputError(f"there is no prompt {name!r:.80} here; known are: {', '.join(prompts) or 'none'}")
        return prompts[name]
    default = None if embedding is None else embedding.default_prompt
    return "" if default is None else prompts[default]


def rows_of(
    manifest: Manifest, texts: Sequence[Any], active: Callable[[int], ActiveAdapter], options: EmbedOptions
) -> list[_Row]:
    """Each text with its prompt; ``active`` gives the adapter of a row's text by its position."""
    prompt, name = options.get("prompt"), options.get("prompt_name")
    rows = []
    for place, text in enumerate(texts):
        embedding = embedding_of(manifest, active(place), place)
        before = prompt_of(embedding, prompt, name)
        if before and not isinstance(text, str):
            raise InputError('a prompt is put before one text, not before a pair of texts: embed pairs with prompt=""')
        rows.append(_Row(text, before, embedding))
    return rows


def limit_of(manifest: Manifest, embedding: Embedding | None) -> int | None:
    """Longest text in tokens."""
    limits = [manifest.max_length, None if embedding is None else embedding.max_length]
    return min((limit for limit in limits if limit is not None), default=None)


def truncated(engine: Engine, texts: Sequence[Any], active: ActiveAdapter, options: EmbedOptions) -> list[int]:
    """Positions of the texts that have more tokens, their prompts included, than are embedded."""
    rows = rows_of(engine.manifest, texts, lambda place: active, options)
    found = []
    for limit, places in _by_limit(engine.manifest, rows):
        cut = engine.encoder_to(limit).truncated([rows[place].whole for place in places])
        found += [places[row] for row in cut]
    return sorted(found)


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
    if manifest.task != "feature-extraction":
        raise InputError(f"{engine.bundle.path} is for {manifest.task}; it does not embed texts")
    whole = active if adapters is None else engine.mixed(adapters)
    rows = rows_of(manifest, texts, lambda place: whole, options)
    found: list[np.ndarray | None] = [None] * len(rows)
    for limit, places in _by_limit(manifest, rows):
        encoder = engine.encoder_to(limit)
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            chosen = active if adapters is None else engine.mixed([adapters[place] for place in part])
            inputs = encoder.encode([rows[place].whole for place in part])
            states = engine.run(inputs, chosen)[HIDDEN]
            mask = inputs[MASK]
            for (embedding, before), members in _alike([rows[place] for place in part]):
                length = 0 if embedding is None or embedding.include_prompt else encoder.prompt_length(before)
                pooled = engine.embeddings.pooled(embedding, states[members], mask[members], length)
                for row, vector in zip(members, pooled, strict=True):
                    require_finite(vector, EMBEDDING, chosen.name_of(row), engine.variant, engine.bundle.path)
                    found[part[row]] = _cut(vector, options)
    return [vector for vector in found if vector is not None]


def _by_limit(manifest: Manifest, rows: Sequence[_Row]) -> Iterator[tuple[int | None, list[int]]]:
    """Positions of the rows that are cut to the same length: adapters may differ in it."""
    groups: dict[int | None, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(limit_of(manifest, row.embedding), []).append(place)
    yield from groups.items()


def _alike(rows: Sequence[_Row]) -> Iterator[tuple[tuple[Embedding | None, str], list[int]]]:
    """Positions of the rows that one graph pools in one run: of the same embedding and prompt."""
    groups: dict[tuple[str, str], tuple[Embedding | None, list[int]]] = {}
    for place, row in enumerate(rows):
        key = ("" if row.embedding is None else row.embedding.graph, row.prompt)
        groups.setdefault(key, (row.embedding, []))[1].append(place)
    for (_, prompt), (embedding, places) in groups.items():
        yield (embedding, prompt), places


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
