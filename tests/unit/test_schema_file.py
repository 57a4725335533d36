"""docs/edgepeft.schema.json is what `edgepeft inspect --schema` prints."""

from __future__ import annotations

import json
from pathlib import Path

from edgepeft.bundle import json_schema


def test_the_schema_in_docs_is_current() -> None:
    file = Path(__file__).parents[2] / "docs" / "edgepeft.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json_schema(), (
        "the manifest's schema changed: edgepeft inspect --schema > docs/edgepeft.schema.json"
    )
