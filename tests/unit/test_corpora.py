"""edgepeft.demo.corpora and the joining of GGUF parts, on texts and files made here."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from edgepeft.demo import assets, corpora, gguf
from edgepeft.errors import AssetError


def test_exchanges_keep_each_pair_once_and_leave_out_what_is_no_exchange() -> None:
    text = """
categories: [x]
conversations:
- - It is  hot.
  - Open a window.
- - it is hot.
  - Open a   window.
- - It is hot.
  - Drink.
- - How many?
  - 22
  - a third turn is not an answer
- - no answer
- a row that lost its dash
- - "  "
  - to nothing
"""
    assert corpora.exchanges(text) == [
        ("It is  hot.", "Open a window."),
        ("It is hot.", "Drink."),
        ("How many?", "22"),
    ]


def test_paragraphs_join_wrapped_lines() -> None:
    assert corpora.paragraphs(["", "EMMA", "", "", "Emma Woodhouse,", " handsome", "  ", "end"]) == (
        "EMMA\n\nEmma Woodhouse, handsome\n\nend\n"
    )


def write_r_database(folder: Path, vectors: dict[str, list[str]]) -> tuple[Path, Path]:
    """What R's lazy loading keeps: an index (.rdx) and a database (.rdb) of compressed serialized objects."""
    rdata = pytest.importorskip("rdata")
    raw, places = b"", {}
    for name, lines in vectors.items():
        rdata.write_rds(folder / "one.rds", np.array(lines), compression=None)
        content = (folder / "one.rds").read_bytes()
        block = len(content).to_bytes(4, "big") + zlib.compress(content)
        places[name] = np.array([len(raw), len(block)], dtype=np.int32)
        raw += block
    rdata.write_rds(folder / "x.rdx", {"variables": places, "references": {}, "compressed": np.array([True])})
    (folder / "x.rdb").write_bytes(raw)
    return folder / "x.rdx", folder / "x.rdb"


def test_r_strings(tmp_path: Path) -> None:
    vectors = {"emma": ["EMMA", "", "naïve"], "b": ["x"] * 50}
    assert corpora.read_r_strings(*write_r_database(tmp_path, vectors)) == vectors


def test_a_damaged_r_database(tmp_path: Path) -> None:
    index, database = write_r_database(tmp_path, {"emma": ["EMMA", "a line"]})
    raw = database.read_bytes()
    database.write_bytes(raw[:4] + b"garbage" + raw[11:])
    with pytest.raises(AssetError, match="'emma' is not a zlib stream"):
        corpora.read_r_strings(index, database)
    database.write_bytes((7).to_bytes(4, "big") + raw[4:])
    with pytest.raises(AssetError, match="not what its head says"):
        corpora.read_r_strings(index, database)


def test_pydoc_topics_are_rows_of_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path))
    lines = (assets.pydoc_topics() / "topics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    assert len(rows) > 50
    assert all(set(row) == {"text"} and row["text"].strip() for row in rows)


def test_joining_checks_the_whole(tmp_path: Path) -> None:
    parts = [tmp_path / "a.part00", tmp_path / "a.part01"]
    parts[0].write_bytes(b"one")
    parts[1].write_bytes(b"two")
    gguf.join(parts, tmp_path / "whole", hashlib.sha256(b"onetwo").hexdigest())
    assert (tmp_path / "whole").read_bytes() == b"onetwo"
    with pytest.raises(AssetError, match=r"joined from a\.part01, a\.part00.*expected"):
        gguf.join(parts[::-1], tmp_path / "whole", hashlib.sha256(b"onetwo").hexdigest())
