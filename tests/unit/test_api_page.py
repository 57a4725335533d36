"""docs/api.md is current, and public functions say what they take, give and raise."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from api_page import api_page

import edgepeft.pipeline
import edgepeft.runtime

STAGES = [name for name in edgepeft.pipeline.__all__ if inspect.isfunction(getattr(edgepeft.pipeline, name))]


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "api.md"
    assert page.read_text(encoding="utf-8") == api_page(), "run: python docs/api_page.py > docs/api.md"


def test_every_public_name_is_on_the_page() -> None:
    headings = set(re.findall(r"^#{3,4} (\S+)$", api_page(), re.MULTILINE))
    assert headings >= {*edgepeft.pipeline.__all__, *edgepeft.runtime.__all__}
    for name in ("adapter", "use", "close", "base"):
        assert f"Runtime.{name}" in headings
    for name in ("predict", "logits", "run", "forward", "generate", "stream", "conversation"):
        assert f"Calls.{name}" in headings


def test_the_page_names_no_address_and_no_role() -> None:
    page = api_page()
    assert not re.search(r" at 0x[0-9a-f]+|:(func|class|meth|attr|mod):`", page)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_says_what_it_takes_gives_and_raises(name: str) -> None:
    stage = getattr(edgepeft.pipeline, name)
    doc = inspect.getdoc(stage) or ""
    assert [part for part in ("Args:", "Returns:", "Raises:", "Example:") if f"\n{part}" not in doc] == []
    said = set(re.findall(r"^    (\w+): ", doc[doc.index("\nArgs:") : doc.index("\nReturns:")], re.MULTILINE))
    assert said == set(inspect.signature(stage).parameters)
