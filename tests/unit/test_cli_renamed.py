"""The old spelling of a renamed option works, is hidden, and gives a notice."""

from __future__ import annotations

import click
from click.testing import CliRunner

from edgepeft.cli import main
from edgepeft.cli.renamed import renamed_option


def test_old_spelling_gives_its_value_and_a_notice():
    @click.command()
    @renamed_option("--old", "--new", "old")
    def command(old: str | None) -> None:
        click.echo(f"got {old}")

    done = CliRunner().invoke(command, ["--old", "x"])
    assert done.stdout == "got x\n"
    assert "--old is called --new now" in done.stderr
    done = CliRunner().invoke(command, [])
    assert (done.stdout, done.stderr) == ("got None\n", "")
    assert "--old" not in CliRunner().invoke(command, ["--help"]).stdout


def test_run_reads_the_column_by_both_names(tmp_path, monkeypatch):
    from edgepeft import data

    taken = []
    monkeypatch.setattr(data, "read_texts", lambda file, *, text, pair: taken.append(text) or [])
    (tmp_path / "f.csv").write_text("body\nhello\n", encoding="utf-8")
    for name in ("--text", "--column"):
        done = CliRunner().invoke(main, ["run", str(tmp_path), "--file", str(tmp_path / "f.csv"), name, "body"])
        assert done.exit_code == 2
        assert ("is called --text now" in done.stderr) == (name == "--column")
    assert taken == ["body", "body"]
    assert "--column" not in CliRunner().invoke(main, ["run", "--help"]).stdout
