"""Rows that a language model is judged on: plain texts, prompts with their completions, conversations that end with an answer.

What writes down speech is judged on files of sound and what is said in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data import evenly
from ..data_files import read_rows
from ..errors import DataError
from ..spilled_texts import ValuesBuilder

#: Rows that are held in memory before they are written to a temporary file. A model takes seconds for one, so reading it back is
#: for nothing.
IN_MEMORY = 1000


@dataclass(frozen=True)
class LanguageRow:
    """One row. ``prompt`` is what stands before ``answer``: a text, messages, or ``None`` where the answer is a plain text.

    Of speech ``prompt`` is the file of sound, and ``language`` what is spoken in it, where that is said.
    """

    prompt: str | tuple[dict[str, str], ...] | None
    answer: str
    where: str
    language: str | None = None


@dataclass(frozen=True)
class LanguageRows:
    """Rows of one file; those of a large one are on disk, and read when they are asked for."""

    rows: Sequence[LanguageRow]
    source: str = ""
    #: Whether each row is a file of sound and what is said in it.
    sounds: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int]) -> LanguageRows:
        """The given rows, in the given order."""
        return replace(self, rows=tuple(self.rows[row] for row in rows))


def read_language_rows(
    path: str | Path, *, text: str = "text", limit: int | None = None, sounds: bool = False, answered: bool = True
) -> LanguageRows:
    """Read what a language model is judged on from a CSV, TSV or JSONL file.

    Args:
        path: Rows with the columns ``messages``, or ``prompt`` and ``completion``, or a text.
        text: The column of plain texts; of speech, of what is said.
        limit: At most so many rows, spread evenly over the file.
        sounds: Whether the rows are speech: ``audio`` names a file beside this one, and ``language``, where there is such a
            column, what is spoken in it.
        answered: Whether each row of speech must say what is said; where it may not, the answer is empty.

    Raises:
        DataError: Names the line, and what it lacks.
    """
    path = Path(path)
    rows = ValuesBuilder(_as_text, _of_text, IN_MEMORY)
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        rows.append(_heard(row, where, text, path.parent, answered) if sounds else _row(row, where, text))
    if not len(rows):
        raise DataError(f"{path} has no data rows")
    found = LanguageRows(rows.done(), str(path), sounds)
    return found if limit is None else found.select(evenly(len(rows), limit))


def _as_text(row: LanguageRow) -> str:
    return json.dumps([row.prompt, row.answer, row.where, row.language], allow_nan=False)


def _of_text(text: str) -> LanguageRow:
    prompt, answer, where, language = json.loads(text)
    return LanguageRow(tuple(prompt) if isinstance(prompt, list) else prompt, answer, where, language)


def _heard(row: Mapping[str, Any], where: str, text: str, folder: Path, answered: bool) -> LanguageRow:
    if row.get("audio") is None or (answered and row.get(text) is None):
        wanted = f"is judged on files of sound and what is said in them; expected 'audio' and {text!r}"
        wanted = wanted if answered else "is fitted to files of sound; expected 'audio'"
        raise DataError(f"{where}: speech {wanted}, this row has: {', '.join(map(str, row)) or '-'}")
    file = folder / _filled(row["audio"], "'audio'", where)
    if not file.is_file():
        raise DataError(f"{where}: there is no file of sound at {file}")
    language = row.get("language")
    if language is not None:
        language = _filled(language, "'language'", where)
    said = "" if not answered and row.get(text) in (None, "") else _filled(row[text], repr(text), where)
    return LanguageRow(str(file), said, where, language)


def _row(row: Mapping[str, Any], where: str, text: str) -> LanguageRow:
    if row.get("messages") is not None:
        turns = row["messages"]
        fits = isinstance(turns, list) and all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in turns
        )
        if not fits or len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise DataError(
                f"{where}: 'messages' must be a list of turns with role and content that ends with the assistant's answer, found "
                f"{turns!r:.80}"
            )
        prompt = tuple({"role": turn["role"], "content": turn["content"]} for turn in turns[:-1])
        return LanguageRow(prompt, _filled(turns[-1]["content"], "the answer", where), where)
    if row.get("prompt") is not None and row.get("completion") is not None:
        prompt_text = _filled(row["prompt"], "'prompt'", where)
        return LanguageRow(prompt_text, _filled(row["completion"], "'completion'", where), where)
    if row.get(text) is not None:
        return LanguageRow(None, _filled(row[text], repr(text), where), where)
    raise DataError(
        f"{where}: nothing to judge a language model on; expected 'messages', 'prompt' and 'completion', or {text!r}, this row "
        f"has: {', '.join(map(str, row)) or '-'}"
    )


def _filled(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {what} must be a text, found {value!r:.60}")
    return value
