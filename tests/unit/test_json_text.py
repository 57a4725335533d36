"""JSON that every reader takes: names for what is not finite, in one place for the whole package."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgepeft
from edgepeft.json_text import config_text, finite_json, json_text
from edgepeft.worker.job import RowLogits

PACKAGE = Path(edgepeft.__file__).parent
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"not JSON: {word}")

    return json.loads(text, parse_constant=refuse)


@given(VALUES)
def test_what_is_written_is_json(value: Any) -> None:
    assert strict(json_text(value)) == finite_json(value)
    strict(config_text({"value": value}))


@given(st.recursive(st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_what_was_json_before_keeps_its_bytes(value: Any) -> None:
    assert json_text(value) == json.dumps(value, indent=1)


def test_names_are_read_back_by_pydantic() -> None:
    rows = RowLogits(adapter=None, logits=((math.nan, math.inf, -math.inf, 1.5),))
    for text in (rows.model_dump_json(), json_text(rows.model_dump(mode="json"))):
        assert strict(text)["logits"] == [["NaN", "Infinity", "-Infinity", 1.5]]
        (found,) = RowLogits.model_validate_json(text).logits
        assert math.isnan(found[0])
        assert found[1:] == (math.inf, -math.inf, 1.5)


def test_a_config_is_written_as_transformers_reads_it(tmp_path: Path) -> None:
    """Reference: transformers' own reader, which tags infinities so."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "config.json"
    path.write_text(config_text({"model_type": "bert", "limits": [0.0, math.inf]}), "utf-8")
    assert strict(path.read_text("utf-8"))["limits"][1] == {"__float__": "Infinity"}
    assert transformers.BertConfig.from_pretrained(tmp_path).limits == [0.0, math.inf]


def test_every_json_goes_through_it() -> None:
    """Where ``json.dumps`` is called otherwise, its text is read again at once, or is a chat template's."""
    allowed = {"json_text.py", "chat.py"}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path.name in allowed:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        read_again = {
            id(inner)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and ast.unparse(call.func) in {"json.loads", "parse_json"}
            for inner in call.args
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"json.dumps", "json.dump"}:
                strict_too = any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in node.keywords)
                if not strict_too and id(node) not in read_again:
                    wrong.append(f"{path}:{node.lineno}")
    assert not wrong
