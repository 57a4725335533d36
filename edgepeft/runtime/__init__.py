"""The on-device part: open a bundle, choose adapters, run. Imports neither torch nor transformers.

Names are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from ..bundle import Bundle as Bundle
    from ..bundle import Manifest as Manifest
    from .generation import Conversation as Conversation
    from .generation import GenerateOptions as GenerateOptions
    from .generation import Generation as Generation
    from .generation import Generator as Generator
    from .generation import TextStream as TextStream
    from .generation.chat import ChatTemplate as ChatTemplate
    from .generation.fallback import Confidence as Confidence
    from .generation.loop import Steps as Steps
    from .gpu import Placement as Placement
    from .kernels import Kernels as Kernels
    from .kernels import KernelWarning as KernelWarning
    from .predictions import MultiLabelPrediction as MultiLabelPrediction
    from .predictions import Prediction as Prediction
    from .predictions import Score as Score
    from .refresh import Refreshed as Refreshed
    from .runtime import Runtime as Runtime
    from .runtime import open as open
    from .sound import read_sound as read_sound
    from .text import TextEncoder as TextEncoder
    from .transcription import Segment as Segment
    from .transcription import Transcription as Transcription
    from .views import Calls as Calls
    from .views import View as View

#: Where each name lives.
_HOME = {
    "Bundle": "..bundle",
    "Calls": ".views",
    "ChatTemplate": ".generation.chat",
    "Confidence": ".generation.fallback",
    "Conversation": ".generation",
    "GenerateOptions": ".generation",
    "Generation": ".generation",
    "Generator": ".generation",
    "KernelWarning": ".kernels",
    "Kernels": ".kernels",
    "Manifest": "..bundle",
    "MultiLabelPrediction": ".predictions",
    "Placement": ".gpu",
    "Prediction": ".predictions",
    "Refreshed": ".refresh",
    "Runtime": ".runtime",
    "Score": ".predictions",
    "Segment": ".transcription",
    "Steps": ".generation.loop",
    "TextEncoder": ".text",
    "TextStream": ".generation",
    "Transcription": ".transcription",
    "View": ".views",
    "open": ".runtime",
    "read_sound": ".sound",
}

__all__ = [
    "Bundle",
    "Calls",
    "ChatTemplate",
    "Confidence",
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

__getattr__, __dir__ = lazy_names(__name__, _HOME)
