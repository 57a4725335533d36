"""The on-device part: open a bundle, swap adapters, run. Imports neither torch nor transformers."""

from .session import Runtime, open
from .text import Prediction

__all__ = ["Prediction", "Runtime", "open"]
