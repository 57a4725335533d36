"""Arrays read element by element: as Python's own reader takes them, wherever the pieces that are read end."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest

from edgepeft import json_elements
from edgepeft.json_elements import ArrayError, array_elements


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6)
    if kind == 0 and depth < 3:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 1 and depth < 3:
        return {rng.choice('ab"\\]'): value(rng, depth + 1) for _ in range(rng.randrange(3))}
    if kind == 2:
        return "".join(rng.choice('a,"\\[]{}\n ü\u2028') for _ in range(rng.randrange(8)))
    return rng.choice([1, -2.5, True, None])


def test_elements_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    for _ in range(500):
        expected = [value(rng) for _ in range(rng.randrange(6))]
        indent = rng.choice([None, 1])
        text = json.dumps(expected, indent=indent, ensure_ascii=rng.random() < 0.5)
        monkeypatch.setattr(json_elements, "_CHUNK", rng.choice([1, 2, 5, 100]))
        found = list(array_elements(io.StringIO(text, newline="\n")))
        assert [json.loads(element) for _, element in found] == expected
        if indent is not None:
            lines = text.split("\n")
            assert all(lines[line - 1].strip().startswith(element.split("\n")[0]) for line, element in found)


@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[", 1, "the array is not closed"),
        ('[1,\n"a', 2, "the array is not closed"),
        ('["a\\', 1, "the array is not closed"),
        ("[1]\n\n x", 3, "something stands behind"),
        ("[1] [2]", 1, "something stands behind"),
        ("[1}", 1, "closed by }"),
    ],
)
def test_what_is_no_array(monkeypatch: pytest.MonkeyPatch, text: str, line: int, said: str, chunk: int) -> None:
    monkeypatch.setattr(json_elements, "_CHUNK", chunk)
    with pytest.raises(ArrayError, match=said) as caught:
        list(array_elements(io.StringIO(text, newline="\n")))
    assert caught.value.line == line


def test_missing_elements_are_given_to_their_reader() -> None:
    assert [text for _, text in array_elements(io.StringIO("[1,,2,]"))] == ["1", "", "2", ""]
    assert list(array_elements(io.StringIO(" [ \n ] \n"))) == []


def test_an_element_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_elements, "MAX_BYTES", 1000)
    monkeypatch.setattr(json_elements, "_CHUNK", 100)
    with pytest.raises(ArrayError, match="an element of more than 1,000 characters"):
        list(array_elements(io.StringIO('["' + "x" * 5000)))
