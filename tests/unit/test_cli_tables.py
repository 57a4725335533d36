"""Tables of the command line at the widths of real terminals."""

from __future__ import annotations

import pytest

from edgepeft.cli.tables import LONGEST_WORD, column_widths, draw

# The widest tables that commands print, with cells as long as real ones.
TABLES = {
    "latency against the baseline": (
        ("variant", "adapter", "shape", "baseline p50 ms", "p50 ms", "ratio", "lower", "upper", "n", "verdict"),
        [("int8", "reviews", "1x128", "12.41", "13.02", "1.049", "1.021", "1.077", "12", "inconclusive"),
         ("fp32", "(base)", "1x128", "1,102", "1,099", "0.997", "0.981", "1.013", "12", "pass")],
    ),
    "load, swap and memory": (
        ("variant", "load ms", "swap p50 ms", "swap + inference ms", "first use ms", "peak RSS MB", "RSS drift MB"),
        [("int8", "101", "0.021", "12.4", "3.61", "1,204", "–"), ("fp32", "140", "0.024", "15.2", "4.10", "1,420", "0.1")],
    ),
    "steady latency": (
        ("variant", "adapter", "shape", "p50 ms", "p95 ms", "p99 ms", "tokens/s", "processes", "iterations"),
        [("q4", "support-tickets", "1x128", "12.4", "13.1", "–", "80.2", "3", "150")],
    ),
    "accuracy": (
        ("variant", "adapter", "rows", "baseline", "accuracy", "lower", "upper", "drop", "McNemar p"),
        [("int8", "reviews", "1,200", "0.912", "0.910", "0.894", "0.926", "0.002", "0.618")],
    ),
    "validation": (
        ("adapter", "variant", "data", "rows", "ONNX", "PyTorch", "same label", "max |difference|"),
        [("reviews", "int8", "held-out.csv", "1,200", "0.910", "0.912", "0.998", "0.0000012")],
    ),
    "gates": (
        ("verdict", "gate", "value", "limit", "unit", "margin"),
        [("inconclusive", "latency ratio of int8 with reviews at 1x128", "1.049", "≤ 1.050", "ratio", "+0%")],
    ),
    "targets": (
        ("target", "variant", "MB", "how", "verdict", "why"),
        [("ios-coreml", "fp16", "46.2", "static", "fail", "six nodes of 412 are left to the CPU provider by the table")],
    ),
    "left to the cpu": (
        ("graph", "provider", "nodes", "operator", "reason"),
        [("onnx/model_int8.onnx", "CoreMLExecutionProvider", "12", "SkipLayerNormalization", "not in the table of it")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [80, 100])
def test_fits_and_keeps_words_whole(name, width):
    columns, rows = TABLES[name]
    text = draw(columns, rows, width)
    assert max(map(len, text.splitlines())) <= width
    found = text.split()
    for shown in (*columns, *(cell for row in rows for cell in row)):
        for word in shown.split():
            assert len(word) > LONGEST_WORD or word in found, f"{word!r} is broken in\n{text}"


def test_numbers_are_never_broken():
    widths = column_widths(("name", "count"), [("a text of some words", "1,234,567,890")], 24)
    assert widths is not None
    assert widths[1] == len("1,234,567,890")


def test_too_wide_becomes_records():
    columns = ("variant", "adapter", "difference")
    text = draw(columns, [("fp32", "reviews", "0.25"), ("int8", "spam", "0.50")], 20)
    assert [line.split() for line in text.splitlines()] == [
        ["variant", "fp32"], ["adapter", "reviews"], ["difference", "0.25"], [],
        ["variant", "int8"], ["adapter", "spam"], ["difference", "0.50"],
    ]  # fmt: skip


def test_not_a_terminal_is_one_line_a_row():
    columns, rows = TABLES["left to the cpu"]
    assert len(draw(columns, [(*rows[0][:4], "a long reason " * 20)], None).splitlines()) == 3


def test_long_paths_are_broken_but_complete():
    path = "/data/" + "x" * 120
    text = draw(("file", "MB"), [(path, "1.00")], 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(text.replace("1.00", "").split()).endswith(path)


def test_no_rows():
    assert draw(("variant", "MB"), [], 80).splitlines()[0].split() == ["variant", "MB"]
