"""What is particular to one PEFT method stands in its registry entry: no other room asks for a method by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import edgepeft
from edgepeft.adapters.methods.registry import METHODS

PACKAGE = Path(edgepeft.__file__).parent
#: The room that names them; training makes LoRA adapters, with PEFT's own names for them.
ALLOWED = {PACKAGE / "adapters" / "methods": set(METHODS), PACKAGE / "train": {"LORA"}}


def named(source: str) -> Iterator[tuple[int, str]]:
    """Line and method of every name of a PEFT type in code: as a string, in an import, or in a class of PEFT's."""
    known = {name.replace("_", ""): name for name in METHODS}
    for node in ast.walk(ast.parse(source)):
        words: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = [node.value] if node.value.isupper() else node.value.split(".")[:1]
            words = [word for word in words if word.isupper() or f"{word}.layer" in node.value]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("peft"):
            words = (node.module or "").split(".")
            words += [suffixed(alias.name) for alias in node.names]
        for word in words:
            method = known.get(word.upper().replace("_", ""))
            if method is not None:
                yield node.lineno, method


def suffixed(name: str) -> str:
    """``LilyConfig`` as ``Lily``."""
    for suffix in ("Config", "Model", "Layer", "Cache", "Router"):
        name = name.removesuffix(suffix)
    return name


def test_no_other_room_names_a_method() -> None:
    offences = [
        f"{path.relative_to(PACKAGE)}:{line} names {method}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, method in named(path.read_text(encoding="utf-8"))
        if not any(path.is_relative_to(room) and method in methods for room, methods in ALLOWED.items())
    ]
    assert offences == []


def test_such_names_are_seen() -> None:
    """The ways in which the rooms below once named methods."""
    for line, method in (
        ('config.get("peft_type") == "LORA"', "LORA"),
        ('str(kind).endswith("LILY")', "LILY"),
        ("from peft.tuners.poly.layer import PolyLayer", "POLY"),
        ("from peft import ShadowConfig", "SHADOW"),
        ('patches = ("boft.layer", "BOFTLayer", "cayley_batch")', "BOFT"),
        ('{"PREFIX_TUNING"}', "PREFIX_TUNING"),
    ):
        assert {name for _, name in named(line)} == {method}
