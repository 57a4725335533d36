"""docs/edgepeft.schema.json is what `edgepeft inspect --schema` prints, and what the JavaScript module validates with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepeft.bundle import json_schema


def test_the_schema_in_docs_is_current() -> None:
    file = Path(__file__).parents[2] / "docs" / "edgepeft.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json_schema(), (
        "the manifest's schema changed: edgepeft inspect --schema > docs/edgepeft.schema.json"
    )


def bare(node: Any, *, named: bool = False) -> Any:
    """A schema without its prose; below ``properties`` and ``$defs`` a key is a name, ``title`` included."""
    if isinstance(node, list):
        return [bare(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if named or key not in ("title", "description")}
    inner = {"properties", "$defs"}
    return {k: v if k == "default" else bare(v, named=not named and k in inner) for k, v in kept.items()}


def test_the_schema_of_the_javascript_module_is_current() -> None:
    text = (Path(__file__).parents[2] / "targets" / "web" / "src" / "schema.js").read_text(encoding="utf-8")
    written = text[text.index("*/ (") + len("*/ (") : text.rindex(");")]
    assert json.loads(written) == bare(json_schema()), (
        "the manifest's schema changed: npm --prefix targets/web run schema, after docs/edgepeft.schema.json"
    )
