"""Texts to train language models on, converted once from the formats they are packaged in."""

from __future__ import annotations

import platform
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import AssetError, MissingExtraError
from ..json_text import json_text
from .fetch import derive

#: Topics of ChatterBot's English corpus that are questions with answers, and what ``support.jsonl`` is made of.
_TOPICS = ("tech_support", "computers", "coding", "trivia")
_SUPPORT = ("tech_support", "computers", "coding")

#: R's object names and the titles of the novels.
NOVELS: Mapping[str, str] = {
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}


def chatterbot() -> Path:
    """See :func:`edgepeft.demo.assets.chatterbot`."""

    def make(folder: Path, source: Path) -> None:
        topics = {topic: exchanges((source / f"{topic}.yml").read_text(encoding="utf-8")) for topic in _TOPICS}
        topics["support"] = [row for topic in _SUPPORT for row in topics[topic]]
        for topic, rows in topics.items():
            _write_jsonl(folder / f"{topic}.jsonl", ({"prompt": p, "completion": c} for p, c in rows))

    files = tuple(f"{topic}.jsonl" for topic in (*_TOPICS, "support"))
    return derive("chatterbot-jsonl", ("chatterbot",), "1", files, make)


def exchanges(text: str) -> list[tuple[str, str]]:
    """Question and first answer of each conversation in one of ChatterBot's YAML files, each pair once.

    Pairs that differ only in case and blanks count as one. An entry that is not a list (one row of ``trivia`` lost its
    dash) or has no answer is left out.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("reading this corpus needs PyYAML: pip install 'edgepeft[demo]'") from error
    pairs: dict[tuple[str, str], tuple[str, str]] = {}
    for turns in yaml.safe_load(text)["conversations"]:
        if isinstance(turns, list) and len(turns) >= 2:
            question, answer = (str(turn).strip() for turn in turns[:2])
            if question and answer:
                pairs.setdefault((_normalized(question), _normalized(answer)), (question, answer))
    return list(pairs.values())


def austen() -> Path:
    """See :func:`edgepeft.demo.assets.austen`."""

    def make(folder: Path, source: Path) -> None:
        for name, lines in read_r_strings(source / "Rdata.rdx", source / "Rdata.rdb").items():
            (folder / f"{name}.txt").write_text(paragraphs(lines), encoding="utf-8")

    return derive("austen", ("janeaustenr",), "1", tuple(f"{name}.txt" for name in NOVELS), make)


def read_r_strings(index: Path, database: Path) -> dict[str, list[str]]:
    """The character vectors of an R lazy-load database (``.rdx`` and ``.rdb``), by name.

    The database holds, at the offsets in the index, a 4-byte big-endian length and a zlib stream of R's serialization
    for each object (R Internals, section 1.18). Raises :class:`AssetError` where it does not.
    """
    try:
        import rdata
    except ImportError as error:
        raise MissingExtraError("reading R data needs rdata: pip install 'edgepeft[demo]'") from error
    raw = database.read_bytes()
    columns: dict[str, list[str]] = {}
    with warnings.catch_warnings():
        # rdata 1.1 says that a stream in memory has no file type (November 2026).
        warnings.filterwarnings("ignore", "Unknown file type", UserWarning)
        for key, (offset, length) in rdata.read_rds(index)["variables"].items():
            name = str(key)
            block = raw[int(offset) : int(offset) + int(length)]
            try:
                content = zlib.decompress(block[4:])
            except zlib.error as error:
                raise AssetError(f"{database.name}: object {name!r} is not a zlib stream: {error}") from error
            if len(content) != int.from_bytes(block[:4], "big"):
                raise AssetError(f"{database.name}: object {name!r} has {len(content)} bytes, not what its head says")
            columns[name] = [str(line) for line in rdata.conversion.convert(rdata.parser.parse_data(content))]
    return columns


def paragraphs(lines: Iterable[str]) -> str:
    """Hard-wrapped lines as one line a paragraph, an empty line between two."""
    blocks = re.split(r"\n\s*\n", "\n".join(line.strip() for line in lines))
    return "\n\n".join(" ".join(block.split()) for block in blocks if block.strip()) + "\n"


def pydoc_topics() -> Path:
    """See :func:`edgepeft.demo.assets.pydoc_topics`."""
    from pydoc_data.topics import topics

    def make(folder: Path) -> None:
        _write_jsonl(folder / "topics.jsonl", ({"text": text} for _, text in sorted(topics.items())))

    return derive("pydoc", (), f"1 Python {platform.python_version()}", ("topics.jsonl",), make)


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.write_text("".join(json_text(row, indent=None, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
