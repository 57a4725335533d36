"""edgepeft's custom operators for ONNX Runtime: ``SessionOptions.register_custom_ops_library(str(edgepeft_kernels.library()))``."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"


def library() -> Path:
    """The library of this package; :class:`FileNotFoundError` where the package was installed without it."""
    folder = Path(__file__).parent
    for suffix in (".so", ".dylib"):
        found = folder / f"libedgepeft_kernels{suffix}"
        if found.is_file():
            return found
    raise FileNotFoundError(f"{folder} holds no library; install a wheel of edgepeft-kernels for this platform")
