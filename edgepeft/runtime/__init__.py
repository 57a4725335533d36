"""The on-device part: open a bundle, swap adapters, run. Imports neither torch nor transformers."""

from .generation import Conversation, Generation, TextStream
from .session import Runtime, open
from .text import Prediction

__all__ = ["Conversation", "Generation", "Prediction", "Runtime", "TextStream", "open"]
