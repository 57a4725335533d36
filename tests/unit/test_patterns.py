"""Regular expressions of PEFT configs: PEFT's meaning, with an end."""

from __future__ import annotations

from typing import Any

import pytest

from edgepeft.adapters.methods.lowering import pattern_value
from edgepeft.adapters.patterns import check_patterns
from edgepeft.errors import AdapterError

NAMES = [f"model.layers.{i}.self_attn.{name}" for i in range(24) for name in ("q_proj", "k_proj", "o_proj")]


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {r"([a-z_.0-9]+)+\.nope": 4}},
        {"alpha_pattern": {r"(.*)*(.*)*(.*)*x": 4}},
        {"target_modules": r"(\w+\.?)+!!"},
        {"exclude_modules": r"([a-z_.0-9]+)*\.nope"},
        {"modules_to_save": [r"(\w+\.?)+!!"]},
        {"layers_pattern": r"(\w+\.?)+!!"},
    ],
)
def test_expressions_without_an_end(config: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match=rf"here: .* in {next(iter(config))} .*does not end within 2 s"):
        check_patterns(config, NAMES, "here")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rank_pattern": {"(": 4}}, r"'\(' in rank_pattern is not a regular expression"),
        ({"alpha_pattern": {"*": 4}}, "alpha_pattern is not a regular expression"),
        ({"target_modules": "[a"}, "target_modules"),
        ({"modules_to_save": ["a(?P<x"]}, "modules_to_save"),
        ({"rank_pattern": {"(" * 1500 + ")" * 1500: 4}}, "rank_pattern"),
        ({"rank_pattern": {"a{99999999999999999999}": 4}}, "rank_pattern"),
        ({"rank_pattern": {"a" * 5000: 4}}, "5,000 characters"),
        ({"rank_pattern": {f"a{i}": 1 for i in range(20_001)}}, "20,001 patterns"),
    ],
)
def test_expressions_that_are_none(config: dict[str, Any], says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        check_patterns(config, NAMES, "here")


@pytest.mark.parametrize(
    "key",
    ["q_proj", "self_attn.q_proj", r"layers\.1\.self_attn\.q_proj", "model.layers.1.self_attn.q_proj", r"layers\.[12]\..*",
     r"(q|k)_proj", r".*\.o_proj", "nothing", "proj", r"(model\.)?layers\.\d+\.self_attn\.k_proj", "q_proj|k_proj"],
)  # fmt: skip
def test_values_are_those_peft_takes(key: str) -> None:
    from peft.utils.other import get_pattern_key

    patterns = {key: 7, "o_proj": 9}
    check_patterns({"rank_pattern": patterns}, NAMES, "here")
    for name in NAMES:
        assert pattern_value(patterns, name, 1) == patterns.get(get_pattern_key(list(patterns), name), 1)


def test_thousands_of_names_are_compiled_once() -> None:
    """``re`` itself forgets after 512 expressions; a key for each of 2,000 modules is nothing out of the ordinary."""
    from edgepeft.adapters.patterns import compiled

    compiled.cache_clear()
    patterns = {f"model.layers.{i}.q_proj": i for i in range(2000)}
    assert [pattern_value(patterns, f"model.layers.{i}.q_proj", None) for i in (0, 1999, 1999)] == [0, 1999, 1999]
    assert compiled.cache_info().misses == 2000
