"""edgepeft.data: every format, every error, with the line it names."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgepeft.data import Examples, PromptRows, read_examples, read_prompts
from edgepeft.errors import DataError
from edgepeft.spilled_texts import SpilledTexts
from edgepeft.validate import read_language_rows


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"one, two",x\nthree,y\n'),
        ("a.csv", '\ufefftext,label\r\n"one, two",x\r\nthree,y\r\n'),
        ("a.tsv", "label\ttext\nx\tone, two\ny\tthree\n"),
        ("a.jsonl", '{"text": "one, two", "label": "x"}\n\n{"text": "three", "label": "y"}\n'),
        ("a.JSONL", '\ufeff{"text": "one, two", "label": "x"}\n{"text": "three", "label": "y"}'),
    ],
    ids=["csv", "csv-bom-crlf", "tsv", "jsonl-blank-line", "jsonl-bom"],
)
def test_formats_read_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    assert read_examples(path) == Examples(("one, two", "three"), ("x", "y"), None, str(path))


def test_columns_pairs_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "s1,s2,gold\na,b,1\nc,d,0\ne,f,1\n")
    rows = read_examples(path, text="s1", pair="s2", label="gold", limit=2)
    assert (rows.texts, rows.pairs, rows.labels) == (("a", "c"), ("b", "d"), ("1", "0"))
    assert len(rows) == 2
    assert read_examples(path, text="s1", label=None).labels is None


def test_numbers_as_jsonl_labels_become_strings(tmp_path: Path) -> None:
    assert read_examples(write(tmp_path, "a.jsonl", '{"text": "t", "label": 3}\n')).labels == ("3",)


def test_multiline_csv_field_names_the_line_it_starts_on(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"two\nlines",x\nnext,\n')
    with pytest.raises(DataError, match=r"line 4: the label is empty"):
        read_examples(path)


def test_select_keeps_columns_together() -> None:
    rows = Examples(("a", "b", "c"), ("x", "y", "z"), ("1", "2", "3"), "s")
    assert rows.select([2, 0]) == Examples(("c", "a"), ("z", "x"), ("3", "1"), "s")
    assert Examples(("a", "b"), None).select([1]) == Examples(("b",), None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\nok,x\n\xe9t\xe9,y\n", r"line 3: byte 0xe9 is not valid UTF-8"),
        ("a.csv", "", r"is empty: expected a header"),
        ("a.csv", "text,label\n", r"has no data rows"),
        ("a.csv", "text,label\na,b,c\n", r"line 2: more fields than the header's 2"),
        ("a.csv", "text,label\nalone\n", r"line 2: no column 'label'"),
        (
            "a.csv",
            "sentence,label\na,b\n",
            r"no column 'text'; this row has: sentence, label; --text COLUMN names another$",
        ),
        ("a.csv", "text,lable\na,b\n", r"--label COLUMN names another; did you mean 'lable'\?$"),
        ("a.csv", "text,label\na,  \n", r"line 2: the label is empty"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', r"line 2: not a JSON object"),
        ("a.jsonl", '["a", "b"]\n', r"line 1: expected a JSON object, found list"),
        ("a.jsonl", '{"text": 5, "label": "b"}\n', r"'text' must be a string, found int"),
        ("a.jsonl", '{"text": "a", "label": null}\n', r"line 1: no column 'label'"),
        ("a.jsonl", "\n\n", r"has no data rows"),
        ("a.xlsx", "x", r"unknown data format .xlsx"),
        ("a", "x", r"unknown data format \(no suffix\)"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_examples(path)
    assert name in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read data file .*No such file"):
        read_examples(tmp_path / "none.csv")
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(DataError, match="cannot read data file"):
        read_examples(tmp_path / "dir.csv")


def test_prompts_from_rows_as_language_models_are_trained_on(tmp_path: Path) -> None:
    user, bot = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    chats = "".join(
        f"{json.dumps(row)}\n"
        for row in (
            {"prompt": "why?", "completion": "because"},
            {"messages": [user, bot, user, bot]},
            {"messages": [user]},
        )
    )
    found = read_prompts(write(tmp_path, "a.jsonl", chats))
    assert found.prompts == ("why?", (user, bot, user), (user,))
    assert found.chat is None
    assert read_prompts(write(tmp_path, "a.csv", "prompt,completion\na,b\n")).prompts == ("a",)
    words = "word " * 100
    texts = read_prompts(write(tmp_path, "b.jsonl", f'{{"text": "{words}"}}\n{{"text": "short"}}\n'))
    assert texts.chat is False
    assert texts.prompts == (("word " * 40).strip()[:-5], "short"), "to the end of a whole word"
    assert PromptRows(tuple("abcdefgh")).spread(3).prompts == ("a", "c", "f")
    assert PromptRows(("a",)).spread(3).prompts == ("a",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a"}\n{"label": "x"}\n', "line 2: nothing to go on from; expected 'prompt', 'messages' or 'text'"),
        ('{"prompt": "  "}\n', "line 1: 'prompt' must be a text"),
        ('{"prompt": 3}\n', "line 1: 'prompt' must be a text, found 3"),
        ('{"messages": []}\n', "line 1: 'messages' must be a list"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}\n', "something before the answer"),
        ('{"messages": [{"role": "user"}]}\n', "line 1: 'messages' must be a list"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "some rows are plain text and some are prompts"),
        ("\n", "has no data rows"),
    ],
)
def test_rows_without_a_prompt_name_the_line(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        read_prompts(write(tmp_path, "a.jsonl", content))


ROWS = Examples(("one, two", "three ä"), ("x", "y"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_other_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    """As spreadsheets and Windows write them, with their mark or without."""
    content = {
        "a.csv": 'text,label\r\n"one, two",x\r\nthree ä,y\r\n',
        "a.jsonl": '{"text": "one, two", "label": "x"}\n{"text": "three ä", "label": "y"}\n',
    }[name]
    found = read_examples(write(tmp_path, name, content.encode(encoding)))
    assert (found.texts, found.labels) == (ROWS.texts, ROWS.labels)


def test_half_of_a_character_in_utf_16(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="begins as UTF-16 and is not"):
        read_examples(write(tmp_path, "a.csv", "text,label\n".encode("utf-16") + b"x"))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text;label\n"one, two";x\nthree ä;y\n', 2),
        ("label\ttext\nx\tone, two\ny\tthree ä\n", 2),
        ("text|label\none, two|x\nthree ä|y\n", 2),
        ('sep=;\ntext;label\n"one, two";x\nthree ä;y\n', 3),
        ('"te,xt";text;label\n1;"one, two";x\n2;three ä;y\n', 2),
    ],
    ids=["semicolons", "tabs", "bars", "excel", "comma-in-quotes"],
)
def test_other_delimiters(tmp_path: Path, content: str, line: int) -> None:
    found = read_examples(write(tmp_path, "a.csv", content))
    assert (found.texts, found.labels) == (ROWS.texts, ROWS.labels)
    assert found.lines[0] == line


def test_a_comma_comes_first(tmp_path: Path) -> None:
    """What was read with commas before is read so still."""
    assert read_examples(write(tmp_path, "a.csv", "text,label;b\nx;y,z\n"), label="label;b").texts == ("x;y",)


def test_json_array(tmp_path: Path) -> None:
    rows = [{"text": "one, two", "label": "x"}, {"text": "three ä", "label": "y"}]
    found = read_examples(write(tmp_path, "a.json", json.dumps(rows, indent=2)))
    assert (found.texts, found.labels, found.lines) == (ROWS.texts, ROWS.labels, (2, 6))
    lines = read_examples(write(tmp_path, "b.json", "".join(json.dumps(row) + "\n" for row in rows)))
    assert lines.texts == ROWS.texts
    with pytest.raises(DataError, match="line 3: expected a JSON object, found str"):
        read_examples(write(tmp_path, "c.json", '[{"text": "a", "label": "b"},\n\n"x"]'))
    with pytest.raises(DataError, match="has no data rows"):
        read_examples(write(tmp_path, "d.json", "[]"))
    for content, said in (
        ('[{"text": "a"', "line 1: the array is not closed. Expected an array of objects"),
        ('[{"text": "a", "label": "b"},\n\n]', r"line 3: not a JSON object \(Expecting value\)"),
        ('[{"text": "a", "label": "b"}]\n\n{}', "line 3: something stands behind the array's end"),
        ('[\n{"text": "a",\n "label" "b"}]', r"line 3: not a JSON object \(Expecting ':' delimiter\)"),
        ("\n [}", "line 2: the array is closed by }"),
    ):
        with pytest.raises(DataError, match=rf"e\.json, {said}"):
            read_examples(write(tmp_path, "e.json", content))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": list(ROWS.texts), "label": [3, 4]}), path)
    found = read_examples(path)
    assert (found.texts, found.labels) == (ROWS.texts, ("3", "4"))
    assert found.where(1) == f"{path}, row 2"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_examples(path)
    with pytest.raises(DataError, match="No such file"):
        read_examples(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("suffix", "rows"),
    [(s, 30_000) for s in ("csv", "jsonl", "json")]
    + [pytest.param(s, 200_000, marks=pytest.mark.slow) for s in ("csv", "jsonl", "json")],
)
def test_a_large_file_is_read_row_by_row_and_its_texts_stay_on_disk(tmp_path: Path, suffix: str, rows: int) -> None:
    """What is held of a row is a few bytes; the texts that are held before the first is written are two megabytes here."""
    path, filler = tmp_path / f"large.{suffix}", "é" * 9_990
    with path.open("w", encoding="utf-8") as file:
        file.write({"csv": "text,label\n", "jsonl": "", "json": "[\n"}[suffix])
        for row in range(rows):
            # Only rows after the first 20,000 are long: those stand for a file of any size.
            text = f"{row} {filler}" if row % 100 == 0 and row >= 20_000 else f"{row}"
            comma = "," if suffix == "json" and row < rows - 1 else ""
            file.write(
                f"{text},{row % 2}\n" if suffix == "csv" else f'{{"text": "{text}", "label": {row % 2}}}{comma}\n'
            )
        file.write("]" if suffix == "json" else "")
    tracemalloc.start()
    found = read_examples(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == rows
    # 8 bytes each for place, line and label, with room to grow; and 20,000 short texts.
    assert peak < 3e6 + 40 * rows
    assert (found.texts[rows - 100], found.texts[-1]) == (f"{rows - 100} {filler}", f"{rows - 1}")
    assert found.texts[5:8] == ("5", "6", "7")
    assert found.select([3, rows - 1]).texts == ("3", f"{rows - 1}")
    assert found.where(9) == f"{path}, line {10 if suffix == 'jsonl' else 11}"
    assert found.labels is not None
    assert set(found.labels) == {"0", "1"}
    with pytest.raises(IndexError):
        found.texts[rows]


def test_prompts_of_a_large_file_stay_on_disk(tmp_path: Path) -> None:
    path, filler = tmp_path / "large.jsonl", "w " * 4_000
    with path.open("w", encoding="utf-8") as file:
        for row in range(21_000):
            turn = {"role": "user", "content": f"{row} {filler}" if row >= 20_000 else f"{row}"}
            file.write(json.dumps({"messages": [turn]} if row % 2 else {"prompt": turn["content"]}) + "\n")
    tracemalloc.start()
    found = read_prompts(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6, "the last thousand alone have 8 MB, and 20,000 short ones are held"
    few = found.spread(7)
    assert few.prompts[0] == "0"
    assert few.prompts[1] == "3000"
    assert found.prompts[20_001] == ({"role": "user", "content": f"20001 {filler}"},)
    assert found.prompts[1:3] == (({"role": "user", "content": "1"},), "2")


def test_rows_of_a_language_model_stay_on_disk(tmp_path: Path) -> None:
    path, filler = tmp_path / "large.json", "é" * 5_000
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for row in range(3_000):
            turns = [{"role": "user", "content": f"{row}"}, {"role": "assistant", "content": f"{row} {filler}"}]
            kinds = (
                {"messages": turns},
                {"prompt": "why?", "completion": f"{row} {filler}"},
                {"text": f"{row} {filler}"},
            )
            file.write(f"{',' if row else ''}\n{json.dumps(kinds[row % 3], ensure_ascii=False)}")
        file.write("\n]")
    tracemalloc.start()
    found = read_language_rows(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Python holds such a text in 1 byte a character: 5 MB of the first 1,000 rows, and 10 more would be those of the rest.
    assert peak < 9e6
    assert len(found) == 3_000
    for place in (0, 1, 2, 2_997, 2_998, 2_999):
        row = found.rows[place]
        assert row.answer == f"{place} {filler}"
        assert row.where == f"{path}, line {place + 2}"
        assert row.prompt == (({"role": "user", "content": f"{place}"},), "why?", None)[place % 3]
    few = read_language_rows(path, limit=3)
    assert [row.answer.split()[0] for row in few.rows] == ["0", "1000", "2000"]


def test_a_wrong_byte_far_into_a_file_is_found_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\n" + b"fine,a\n" * 30_000 + b"caf\xe9,a\n")
    with pytest.raises(DataError, match=r"rows.csv, line 30002: byte 0xe9 is not valid UTF-8"):
        read_examples(path)


def test_texts_on_disk_are_those_that_were_given() -> None:
    rng = random.Random(0)
    texts = [
        "".join(chr(rng.choice([0, 65, 233, 8364, 128512, 0xD800])) for _ in range(rng.randrange(6)))
        for _ in range(500)
    ]
    spilled = SpilledTexts(texts)
    assert list(spilled) == texts
    assert [spilled[place] for place in range(-500, 0)] == texts
    with ThreadPoolExecutor(8) as pool:
        places = [rng.randrange(500) for _ in range(2000)]
        assert list(pool.map(spilled.__getitem__, places)) == [texts[place] for place in places]
