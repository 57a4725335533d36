"""Packages that import their names when they are used: what type checkers see there is what is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from edgepeft.lazy_names import lazy_names

PACKAGES = ["edgepeft.pipeline", "edgepeft.runtime", "edgepeft.targets", "edgepeft.train"]


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_same(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    (block,) = (
        node
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        name.asname: "." * node.level + (node.module or "")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert seen == module._HOME
    assert {*module.__all__} <= {*seen}


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_there(package: str) -> None:
    module = importlib.import_module(package)
    assert {*module.__all__} <= {*dir(module)}, "a notebook completes them"
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=rf"module '{package}' has no attribute 'nope'"):
        module.nope  # noqa: B018 - to look it up is the test


def test_a_name_that_its_module_lacks() -> None:
    with pytest.raises(AttributeError, match="absent"):
        lazy_names("edgepeft", {"absent": ".errors"})[0]("absent")
