"""Fine-tuning adapters: labelled rows, conversations or text in, a PEFT checkpoint with its contract out.

Importing this package is light; torch, transformers, peft and datasets load when a training function runs.
"""

from .adapter import train_adapter
from .adapter_result import TrainedAdapter
from .language import train_language_adapter
from .language_result import TrainedLanguageAdapter
from .loop import Scores
from .perplexity import Change, Perplexity
from .record import ADAPTER_FILE
from .task import choose_task

__all__ = [
    "ADAPTER_FILE",
    "Change",
    "Perplexity",
    "Scores",
    "TrainedAdapter",
    "TrainedLanguageAdapter",
    "choose_task",
    "train_adapter",
    "train_language_adapter",
]
