"""The on-device part: open a bundle, choose adapters, run. Imports neither torch nor transformers."""

from ..bundle import Bundle, Manifest
from .generation import Conversation, GenerateOptions, Generation, Generator, TextStream
from .generation.chat import ChatTemplate
from .generation.loop import Steps
from .gpu import Placement
from .kernels import Kernels, KernelWarning
from .predictions import MultiLabelPrediction, Prediction, Score
from .refresh import Refreshed
from .runtime import Runtime, open
from .sound import read_sound
from .text import TextEncoder
from .transcription import Segment, Transcription
from .views import Calls, View

__all__ = [
    "Bundle",
    "Calls",
    "ChatTemplate",
    "Conversation",
    "GenerateOptions",
    "Generation",
    "Generator",
    "KernelWarning",
    "Kernels",
    "Manifest",
    "MultiLabelPrediction",
    "Placement",
    "Prediction",
    "Refreshed",
    "Runtime",
    "Score",
    "Segment",
    "Steps",
    "TextEncoder",
    "TextStream",
    "Transcription",
    "View",
    "open",
    "read_sound",
]
