"""Generating text with a causal language model: cache, sampling, chat templates, streaming, conversations."""

from __future__ import annotations

from .conversation import Conversation
from .generator import GenerateOptions, Generator, Options, Prompt, TextStream, is_batch
from .loop import Generation

__all__ = ["Conversation", "GenerateOptions", "Generation", "Generator", "Options", "Prompt", "TextStream", "is_batch"]
