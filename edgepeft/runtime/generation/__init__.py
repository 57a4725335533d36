"""Generating text with a causal language model: cache, sampling, chat templates, streaming, conversations."""

from __future__ import annotations

from .conversation import Conversation
from .encoder import Prompt, PromptEncoder
from .generator import GenerateOptions, Generator, Options, TextStream, is_batch
from .loop import Generation

__all__ = [
    "Conversation",
    "GenerateOptions",
    "Generation",
    "Generator",
    "Options",
    "Prompt",
    "PromptEncoder",
    "TextStream",
    "is_batch",
]
