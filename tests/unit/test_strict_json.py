"""JSON from outside: what Python's own reader lets pass, or fails on with an exception of its own, is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgepeft.errors import AdapterError, InputError
from edgepeft.strict_json import MAX_BYTES, parse_json, read_json, read_object

REFUSED = {
    "empty": ("", "not JSON"),
    "cut": ('{"a": 1', "not JSON.*line 1"),
    "deep arrays": ("[" * 100_000 + "]" * 100_000, "nested without end|deep in each other"),
    "deep objects": ('{"a":' * 100 + "1" + "}" * 100, "more than 64 deep"),
    "NaN": ('{"a": NaN}', "NaN is no JSON number"),
    "Infinity": ("[-Infinity]", "-Infinity is no JSON number"),
    "overflow": ("[1e999]", "1e999 is too large"),
    "many digits": ("[" + "9" * 5000 + "]", "5000 digits"),
    "beyond 64 bits": ("[18446744073709551616]", "digits"),
    "a key twice": ('{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
    "half a surrogate pair": ('{"a": "\\ud800"}', "surrogate"),
    "half a pair in a key": ('{"\\udc00": 1}', "surrogate"),
    "a text of half a pair": ('"\\ud800"', "surrogate"),
}


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=rf"(?s)here\.json.*({says}).*; do that"):
        parse_json(text, "here.json", error=AdapterError, advice="do that")
    path = tmp_path / "here.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"(?s)here\.json.*({says})"):
        read_json(path)


def test_what_is_json_is_read() -> None:
    text = '{"a": [1, -2.5, 1e300, true, null, "\\ud83d\\ude00é"], "b": {"c": 18446744073709551615}}'
    assert parse_json(text, "x") == {"a": [1, -2.5, 1e300, True, None, "😀é"], "b": {"c": 2**64 - 1}}
    assert parse_json("[Infinity]", "x", finite=False) == [float("inf")]
    # transformers' length of a tokenizer without limit
    assert parse_json(json.dumps({"model_max_length": int(1e30)}), "x", finite=False) == {"model_max_length": int(1e30)}
    with pytest.raises(InputError, match="65 digits"):
        parse_json("1" * 65, "x", finite=False)
    assert parse_json("[" * 64 + "]" * 64, "x")


def test_files_that_are_none(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "latin").write_bytes(b'"\xe9"')
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "list").write_text("[]")
    for name, says in {
        "pipe": "no regular file", "zero": "no regular file", "": "no regular file", "latin": "byte 1 is not UTF-8",
        "large": "more than 16,777,216 bytes", "none": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=says):
            read_json(tmp_path / name)
    with pytest.raises(InputError, match=r"list must hold a JSON object, found an array"):
        read_object(tmp_path / "list")
