"""Bundles in ONNX Runtime Web: in a headless browser through a served page, and in Node."""

from __future__ import annotations

from .executor import NodeExecutor, WebExecutor, WebGpuExecutor
from .pages import demo_site
from .site import Site

__all__ = ["NodeExecutor", "Site", "WebExecutor", "WebGpuExecutor", "demo_site"]
