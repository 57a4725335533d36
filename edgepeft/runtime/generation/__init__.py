"""Generating text with a causal language model: cache, sampling, chat templates, streaming, conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError
from .conversation import Conversation
from .encoder import Prompt, PromptEncoder
from .generator import GenerateOptions, Generator, Options, TextStream, is_batch
from .loop import Generation

if TYPE_CHECKING:
    from ..session import Runtime

__all__ = [
    "Conversation",
    "GenerateOptions",
    "Generation",
    "Generator",
    "Options",
    "Prompt",
    "PromptEncoder",
    "TextStream",
    "generator_for",
    "is_batch",
]


def generator_for(runtime: Runtime) -> Generator:
    """What generates with a bundle's model; :class:`InputError` for a task that does not write."""
    task = runtime.manifest.task
    if task == "text2text-generation":
        from .crossed import Writer

        return Writer(runtime)
    if task != "text-generation":
        raise InputError(
            f"{runtime.bundle.path} is for {task}; generating needs a causal language model or an encoder-decoder"
        )
    return Generator(runtime)
