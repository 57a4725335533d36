"""Files of rows as mappings: CSV and its relatives, JSON, JSONL and Parquet, with the line that each row starts on."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from .errors import DataError, MissingExtraError
from .json_elements import ArrayError, array_elements
from .strict_json import parse_json

#: What rows are read from.
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
#: Byte order marks and what they stand for; UTF-32's little-endian one begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: Delimiters that spreadsheets write into .csv files, the usual one first.
_DELIMITERS = (",", ";", "\t", "|")


def is_row_file(path: Path) -> bool:
    """Whether a path is meant as a file of rows, there or not, and no ``datasets`` id or folder."""
    return path.is_file() or path.suffix.lower() in SUFFIXES


def read_text(path: Path) -> str:
    """The whole of a file, or of standard input (``-``): UTF-8, or UTF-16 or UTF-32 as its first bytes say.

    Raises:
        DataError: It cannot be read, or a line is in another encoding.
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    encoding = _encoding(raw)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise _not_text(path, raw, encoding, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read data file {path}: {error.strerror or error}")


def _not_text(path: Path, raw: bytes, encoding: str, error: UnicodeDecodeError) -> DataError:
    name = "standard input" if str(path) == "-" else str(path)
    if encoding.startswith("utf-8"):
        row = raw.count(b"\n", 0, error.start) + 1
        return DataError(
            f"{name}, line {row}: byte 0x{raw[error.start]:02x} is not valid UTF-8. "
            "Convert the file first, for example: iconv -f latin1 -t utf-8 IN > OUT"
        )
    return DataError(f"{name} begins as {encoding.upper()} and is not: {error.reason} at byte {error.start}")


@contextmanager
def _open_text(path: Path, newline: str) -> Iterator[TextIO]:
    """A file as text in its encoding, to be read line by line; ``newline`` as :func:`open` takes it.

    Raises:
        DataError: As :func:`read_text`.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(512)
            raw.seek(0)
            with io.TextIOWrapper(raw, encoding=_encoding(head), newline=newline) as text:
                yield text
    except UnicodeDecodeError as error:
        read_text(path)  # says which line
        raise DataError(f"{path} changed while it was read") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _encoding(head: bytes) -> str:
    """The encoding that the first bytes of a file say."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None) or _unmarked(head)


def _unmarked(raw: bytes) -> str:
    """UTF-16 without a mark has a zero byte beside each Latin letter; no text in UTF-8 has any."""
    head = raw[:512]
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        other = head[1 - start :: 2]
        if len(head) >= 4 and head[start::2].count(0) > 0.8 * len(other) and not other.count(0):
            return encoding
    return "utf-8"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row of a file as a mapping, with the line it starts on (1-based, a CSV header is line 1; in Parquet the row).

    Rows are read as they are asked for. ``.csv`` takes commas, or semicolons, tabs or bars where its header has those and no
    comma; ``.json`` an array of objects, or one object a line as ``.jsonl``.

    Raises:
        DataError: Names the line; or the format, where it is another.
        MissingExtraError: Parquet needs pyarrow.
    """
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            with _open_text(path, "\n") as file:
                yield from _json_lines(path, file)
        case ".json":
            with _open_text(path, "\n") as file:
                begins = next((line.lstrip()[0] for line in file if line.strip()), "")
            with _open_text(path, "\n") as file:
                yield from _json_array(path, file) if begins == "[" else _json_lines(path, file)
        case ".csv" | ".tsv":
            with _open_text(path, "") as file:
                yield from _delimited(path, file)
        case ".parquet":
            yield from _parquet(path)
        case suffix:
            raise DataError(
                f"{path}: unknown data format {suffix or '(no suffix)'}; use .csv, .tsv, .jsonl, .json or .parquet"
            )


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    # Lines end at \n alone: others, as U+2028, may stand in JSON strings.
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _object(path, number, line.rstrip())


def _json_array(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for line, text in array_elements(file):
            yield line, _object(path, line, text)
    except ArrayError as error:
        raise DataError(
            f"{path}, line {error.line}: {error}. Expected an array of objects, or one object per line."
        ) from error


def _object(path: Path, line: int, text: str) -> dict[str, Any]:
    """The object that a row is; ``line`` is where it starts."""
    where = f"{path}, line {line}"
    try:
        row = parse_json(text, where, error=DataError, advice="one object per line", finite=False)
    except DataError as error:
        wrong = error.__cause__
        if isinstance(wrong, json.JSONDecodeError):
            or_array = ", or an array of objects." if path.suffix.lower() == ".json" else "."
            raise DataError(
                f"{path}, line {line + wrong.lineno - 1}: not a JSON object ({wrong.msg}). One object per line{or_array}"
            ) from error
        raise
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def _delimited(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    first = file.readline()
    lines: Iterable[str] = chain([first] if first else [], file)
    skipped = 0
    if path.suffix.lower() == ".tsv":
        delimiter = "\t"
    elif first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # Excel's first line
        delimiter, lines, skipped = first.strip()[4], file, 1
    else:
        delimiter = next((each for each in _DELIMITERS if each in _outside_quotes(first)), ",")
    reader = csv.DictReader(lines, delimiter=delimiter)
    try:
        header = reader.fieldnames
    except csv.Error as error:
        raise _csv_error(path, 1 + skipped, error) from error
    if header is None:
        raise DataError(f"{path} is empty: expected a header line such as text,label")
    twice = next((name for place, name in enumerate(header) if name in header[:place]), None)
    if twice:
        raise DataError(f"{path}, line {1 + skipped}: the header names the column {twice[:80]!r} twice")
    while True:
        start = reader.line_num + 1 + skipped
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _csv_error(path, start, error) from error
        if None in fields:
            raise DataError(
                f"{path}, line {start}: more fields than the header's {len(header)}. Quote texts that hold the delimiter "
                f"({delimiter!r})."
            )
        yield start, fields


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _csv_error(path: Path, line: int, error: csv.Error) -> DataError:
    large = "field limit" in str(error)
    what = (
        f"a field of more than {csv.field_size_limit():,} characters (a quote that is never closed?)"
        if large
        else error
    )
    advice = "Longer texts are read from .jsonl." if large else "Write the file again as CSV or .jsonl."
    return DataError(f"{path}, line {line}: {what}. {advice}")


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"cannot read data file {path}: No such file or directory")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            f"reading {path.name} needs pyarrow: pip install 'edgepeft[train]' ({error})"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file (truncated or damaged?): {error}") from error
