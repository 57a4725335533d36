"""Bundles in ONNX Runtime Web: in a headless browser through a served page, and in Node."""

from __future__ import annotations

from .executor import NodeExecutor, WebExecutor
from .pages import demo_site
from .site import Site

__all__ = ["NodeExecutor", "Site", "WebExecutor", "demo_site"]
