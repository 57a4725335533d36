"""Reports: JSON, Markdown and JUnit read back; files replaced whole."""

from __future__ import annotations

import json
import os
import stat
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgepeft.errors import InputError
from edgepeft.report import format_cell, table_to_markdown, to_json, to_junit, to_markdown, write_reports
from edgepeft.report.gate import Gate, Report, Table, Verdict

REPORT = Report(
    kind="check",
    title="Check of new against old",
    gates=(
        Gate("p50 fp32/a 1x32", Verdict.PASS, 11.234, 35.0, "ms", "median of 3 processes"),
        Gate('ratio <b> & "c"', Verdict.FAIL, 2.0, 1.1, "ratio", "interval 1.9 to 2.1\x00|"),
        Gate("accuracy a", Verdict.INCONCLUSIVE, 0.85, 0.8, "share", "85 of 100 rows", bound="min"),
    ),
    tables=(Table("Sizes", ("part", "MB"), (("bundle|x", 90.25), ("adapter", None))),),
    notes=("one note",),
    data={"kind": "check", "n": 1},
)


def test_json_carries_gates_and_data() -> None:
    value = json.loads(to_json(REPORT))
    assert list(value) == ["schema_version", "kind", "title", "verdict", "gates", "tables", "notes", "data"]
    assert value["verdict"] == "fail"
    assert value["data"] == {"kind": "check", "n": 1}
    assert value["gates"][0] == {
        "name": "p50 fp32/a 1x32", "verdict": "pass", "value": 11.234, "limit": 35.0, "unit": "ms",
        "detail": "median of 3 processes", "bound": "max", "margin": pytest.approx(0.679, abs=1e-3),
    }  # fmt: skip


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(Report("bench", "t", data={"x": float("nan")}))


def test_markdown_is_pinned() -> None:
    report = Report(REPORT.kind, REPORT.title, REPORT.gates[::2], REPORT.tables, REPORT.notes)
    assert to_markdown(report) == (
        "# Check of new against old\n"
        "\n"
        "**❔ inconclusive: 1 gate is inconclusive, 1 gate passes**\n"
        "\n"
        "## What does not pass\n"
        "\n"
        "| verdict | gate | value | limit | room | detail |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| ❔ inconclusive | accuracy a | 0.850 share | ≥ 0.8 | +6% | 85 of 100 rows |\n"
        "\n"
        "<details><summary>1 gate passes</summary>\n"
        "\n"
        "| verdict | gate | value | limit | room | detail |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| ✅ pass | p50 fp32/a 1x32 | 11.2 ms | ≤ 35 | +68% | median of 3 processes |\n"
        "\n"
        "</details>\n"
        "\n"
        "<details><summary>Sizes</summary>\n"
        "\n"
        "| part | MB |\n"
        "| --- | ---: |\n"
        "| bundle\\|x | 90.2 |\n"
        "| adapter | – |\n"
        "\n"
        "</details>\n"
        "\n"
        "- one note\n"
    )


def test_cells() -> None:
    values = (None, "a", 1234567, 1234.5, 99.94, 9.994, 0.1234, 0.0, 0.0000123, -5.0)
    assert [format_cell(v) for v in values] == [
        "–", "a", "1,234,567", "1,234", "99.9", "9.99", "0.123", "0.000", "1.2e-05", "-5.00",
    ]  # fmt: skip
    assert table_to_markdown(Table("empty", ("a",), ())) == "| a |\n| --- |\n"


def test_junit_parses_back() -> None:
    root = ET.fromstring(to_junit(REPORT))
    suite = root.find("testsuite")
    assert suite is not None
    assert suite.attrib == {"name": "edgepeft.check", "tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    passed, failed, skipped = suite.findall("testcase")
    assert passed.attrib["name"] == "p50 fp32/a 1x32"
    assert [child.tag for child in passed] == ["system-out"]
    assert failed.attrib["name"] == 'ratio <b> & "c"'
    failure = failed.find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "2 ratio, limit ≤ 1.1 ratio: interval 1.9 to 2.1\ufffd|"
    why = skipped.find("skipped")
    assert why is not None
    assert why.attrib["message"] == "inconclusive: 0.85 share, limit ≥ 0.8 share: 85 of 100 rows"


def test_files_are_written_whole_and_a_second_run_replaces_them(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    write_reports(folder, "check", Report("check", "old"))
    files = write_reports(folder, "check", REPORT)
    assert sorted(path.name for path in folder.iterdir()) == ["check.json", "check.junit.xml", "check.md"]
    saved = json.loads(files.json.read_text(encoding="utf-8"))
    written = datetime.fromisoformat(saved.pop("created"))
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60
    assert saved == json.loads(to_json(REPORT))
    assert files.markdown.read_text(encoding="utf-8") == to_markdown(REPORT)
    assert files.junit.read_text(encoding="utf-8") == to_junit(REPORT)
    assert stat.S_IMODE(files.json.stat().st_mode) == 0o644 or os.name == "nt"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_reports(tmp_path, "check", REPORT)
    before = files.json.read_text(encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write the report to .*No space left on device"):
        write_reports(tmp_path, "check", Report("check", "new"))
    assert files.json.read_text(encoding="utf-8") == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_stem_is_a_plain_name(tmp_path: Path) -> None:
    for stem in ("", "a/b", "../x"):
        with pytest.raises(InputError, match="cannot name a report"):
            write_reports(tmp_path, stem, REPORT)
