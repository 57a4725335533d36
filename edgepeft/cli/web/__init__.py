"""``edgepeft web``: a bundle in a browser."""

from __future__ import annotations

from cloup import Section, group

from .prepare import prepare
from .serve import serve


@group(sections=[Section("Commands", [prepare, serve])])
def web() -> None:
    """Run a bundle in a browser, with ONNX Runtime Web."""
