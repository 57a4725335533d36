"""Fine-tuning adapters: labelled rows, conversations or text in, a PEFT checkpoint with its contract out.

Importing this package is light: names are imported when they are used, and torch, transformers, peft and datasets when a
training function runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .adapter import train_adapter as train_adapter
    from .adapter_result import TrainedAdapter as TrainedAdapter
    from .language import train_language_adapter as train_language_adapter
    from .language_result import TrainedLanguageAdapter as TrainedLanguageAdapter
    from .loop import Scores as Scores
    from .perplexity import Change as Change
    from .perplexity import Perplexity as Perplexity
    from .record import ADAPTER_FILE as ADAPTER_FILE
    from .task import choose_task as choose_task

#: Where each name lives.
_HOME = {
    "ADAPTER_FILE": ".record",
    "Change": ".perplexity",
    "Perplexity": ".perplexity",
    "Scores": ".loop",
    "TrainedAdapter": ".adapter_result",
    "TrainedLanguageAdapter": ".language_result",
    "choose_task": ".task",
    "train_adapter": ".adapter",
    "train_language_adapter": ".language",
}

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

__getattr__, __dir__ = lazy_names(__name__, _HOME)
