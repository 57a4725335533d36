"""What a language model learns from several sources: their rows, and what is held out of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from .corpus import Columns, Corpus, check_corpora, corpus_without_leaks, read_corpus
from .encode import Tokens
from .language_rows import Sequences, sequences_of
from .leaks import check_leaks
from .mixing import check_temperature
from .several import COMMON, check_sources, listed, names_of
from .tokenizer import HubTokenizer


@dataclass(frozen=True)
class Corpora:
    """Rows of one or several sources, and those to measure on.

    ``held`` has the validation rows of each source, ``None`` where they are to be split off. ``common``: they are the same for all.
    ``leaked`` rows were left out since validation rows, or ``general`` ones, of other domains, are the same.
    """

    parts: tuple[Corpus, ...]
    held: tuple[Corpus | None, ...]
    names: tuple[str, ...]
    common: bool
    leaked: int
    general: Corpus | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than one source."""
        return len(self.parts) > 1


def read_corpora(
    data: str | Path | Sequence[str | Path],
    validation: str | Path | Sequence[str | Path] | None,
    columns: Columns,
    temperature: float,
    general: str | Path | None = None,
) -> Corpora:
    """Read all sources, validation rows for each, for all, or those that a data set has, and rows of other domains.

    Raises:
        DataError: A row is wrong, or two sources hold rows of different kinds.
        InputError: A source is given twice, or it is not clear whose validation rows are.
    """
    given, apart = listed(data), () if validation is None else listed(validation)
    check_sources(given, apart)
    check_temperature(temperature, len(given))
    found = [read_corpus(each, columns) for each in given]
    own = [read_corpus(each, columns)[0] for each in apart]
    for corpus, _ in found[1:]:
        if corpus.kind != found[0][0].kind:
            raise DataError(
                f"one adapter learns from rows of one kind, and {found[0][0].source} holds {found[0][0].kind} rows, "
                f"{corpus.source} {corpus.kind} rows; give them the same columns"
            )
    held = tuple(own[place if len(own) > 1 else 0] if own else declared for place, (_, declared) in enumerate(found))
    for (corpus, _), apart_from_it in zip(found, held, strict=True):
        check_corpora(corpus, apart_from_it)
    beyond = None if general is None else read_corpus(general, columns)[0]
    apart_from_all = list({id(corpus): corpus for corpus in (*held, beyond) if corpus is not None}.values())
    parts, leaked = [], 0
    for corpus, _ in found:
        for each in apart_from_all:
            corpus, count = corpus_without_leaks(corpus, each)
            leaked += count
        parts.append(corpus)
    return Corpora(tuple(parts), held, names_of(given), len(own) == 1 and len(given) > 1, leaked, beyond)


def sequences_of_all(
    corpora: Corpora,
    tokenizer: HubTokenizer,
    *,
    source: str,
    length: int,
    chat: bool | None,
    fraction: float,
    max_validation_tokens: int,
    seed: int,
) -> tuple[Sequences, int]:
    """The sequences of all sources, each marked with its own, and how many were left out since another source holds them out.

    Arguments are those of :func:`.sequences_of`; several sources share ``max_validation_tokens`` evenly.
    """

    def of(number: int, tokens: int) -> Sequences:
        return sequences_of(
            corpora.parts[number],
            corpora.held[number],
            tokenizer,
            source=source,
            length=length,
            chat=chat,
            fraction=fraction,
            max_validation_tokens=tokens,
            seed=seed,
        )

    count = len(corpora.parts)
    if count == 1:
        return of(0, max_validation_tokens), 0
    parts = [of(number, max_validation_tokens // (1 if corpora.common else count)) for number in range(count)]
    train, leaked = [], 0
    for number, part in enumerate(parts):
        others = {_key(part.layout, each) for other in parts if other is not part for each in other.held}
        kept = [each for each in part.train if _key(part.layout, each) not in others]
        leaked += len(part.train) - len(kept)
        check_leaks(len(part.train) - len(kept), len(part.train), corpora.names[number], "the other sources")
        train += [_of_source(each, number) for each in kept]
    held = (
        [_of_source(each, COMMON) for each in parts[0].held]
        if corpora.common
        else [_of_source(each, number) for number, part in enumerate(parts) for each in part.held]
    )
    cut = sum(part.cut for part in parts)
    return Sequences(parts[0].layout, train, held, cut, sum(part.skipped for part in parts)), leaked


def _key(layout: str, sequence: Tokens) -> str | bytes:
    """What counts as the same row in two sources: the same prompt, or the same piece of a text."""
    return sequence.ids.tobytes() if layout == "text" else sequence.group


def _of_source(sequence: Tokens, number: int) -> Tokens:
    """Groups of two sources are two, whatever they are called."""
    return replace(sequence, source=number, group=f"{number}\0{sequence.group}")
