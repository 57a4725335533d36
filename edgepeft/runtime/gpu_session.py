"""A session on the GPU that threads share: one of them at a time gives it work.

All sessions of the plugin write their commands into one encoder. Two threads that did so at once (a run beside another, or beside a
copy to the GPU's memory or its release) ended the process with ONNX Runtime 1.32 and plugin 0.4.
"""

from __future__ import annotations

import threading
from typing import Any

#: Held while anything is asked of the GPU. A thread that holds it may take it again.
GPU = threading.RLock()


class GpuSession:
    """An ``onnxruntime.InferenceSession`` whose runs wait for one another."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *given: Any, **options: Any) -> Any:
        """As ``InferenceSession.run``."""
        with GPU:
            return self._session.run(*given, **options)

    def run_with_ort_values(self, *given: Any, **options: Any) -> Any:
        """As ``InferenceSession.run_with_ort_values``."""
        with GPU:
            return self._session.run_with_ort_values(*given, **options)

    def run_with_iobinding(self, *given: Any, **options: Any) -> Any:
        """As ``InferenceSession.run_with_iobinding``."""
        with GPU:
            return self._session.run_with_iobinding(*given, **options)


class GpuValues(dict[str, Any]):
    """Values in the GPU's memory by name, which are released while no thread runs anything there."""

    def __del__(self) -> None:
        with GPU:
            self.clear()
