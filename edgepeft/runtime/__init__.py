"""The on-device part: open a bundle, choose adapters, run. Imports neither torch nor transformers."""

from .generation import Conversation, Generation, TextStream
from .runtime import Runtime, open
from .text import Prediction
from .views import View

__all__ = ["Conversation", "Generation", "Prediction", "Runtime", "TextStream", "View", "open"]
