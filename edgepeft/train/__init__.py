"""Fine-tuning adapters: labelled text in, a PEFT checkpoint with its contract out.

Importing this package is light; torch, transformers, peft and datasets load when :func:`train_adapter` runs.
"""

from .adapter import ADAPTER_FILE, TrainedAdapter, train_adapter
from .loop import Scores

__all__ = ["ADAPTER_FILE", "Scores", "TrainedAdapter", "train_adapter"]
