"""What the values of options mean, and what a wrong call says as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner

from edgepeft.bundle import Verify
from edgepeft.cli import main
from edgepeft.cli.run import _one_line, run
from edgepeft.cli.values import calibration_data, examples, with_columns
from edgepeft.errors import InputError


def test_columns_of_each_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("body,stars,title\ngood,5,t\n")
    (tmp_path / "b.csv").write_text("text,label\nbad,1\n")
    found = examples(
        (f"a={tmp_path / 'a.csv'}:text=body,label=stars,pair=title", f"b={tmp_path / 'b.csv'}"), "text", "label", None
    )
    assert (found["a"].texts, found["a"].labels, found["a"].pairs) == (("good",), ("5",), ("t",))
    assert (found["b"].texts, found["b"].labels, found["b"].pairs) == (("bad",), ("1",), None)
    assert calibration_data(None, (f"*={tmp_path / 'a.csv'}:text=title",), "text", None)["*"].texts == ("t",)


def test_paths_with_colons(tmp_path: Path) -> None:
    assert with_columns("C:\\data\\a.csv", text="t") == ("C:\\data\\a.csv", {"text": "t"})
    assert with_columns("C:\\data\\a.csv:text=b", text="t") == ("C:\\data\\a.csv", {"text": "b"})
    odd = tmp_path / "x:text=y"
    odd.write_text("")
    assert with_columns(str(odd), text="t") == (str(odd), {"text": "t"})


def test_modes_of_verify_are_those_of_bundles() -> None:
    """They are written twice so that the command line starts without bundle code."""
    (option,) = (parameter for parameter in run.params if parameter.name == "verify")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == get_args(Verify)


@pytest.mark.parametrize("value", ["a.csv:txt=b", "a.csv:text="])
def test_wrong_columns(value: str) -> None:
    with pytest.raises(InputError, match="names no column"):
        with_columns(value, text="text", label="label")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--json", "--no-such"], "No such option"),
        (["exprot", "--json"], "exprot"),
        (["quantize", "x", "--json"], "--variant"),
        (["targets", "pack", "x", "--json", "--target"], "--target"),
    ],
)
def test_a_wrong_call_is_json_where_it_asks_for_json(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    told = json.loads(done.stdout)
    assert told["type"] == "UsageError"
    assert says in told["error"]
    assert "Error: " in done.stderr
    plain = CliRunner().invoke(main, [each for each in arguments if each != "--json"])
    assert (plain.exit_code, plain.stdout) == (2, "")


def test_texts_stay_on_their_line() -> None:
    assert _one_line("a\tb\r\nc") == "a\\tb\\r\\nc"
    assert _one_line(("a", "b\n")) == "a ⏐ b\\n"
