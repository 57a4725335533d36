"""Generating text: prompts, cache, sampling, chat templates, streaming, conversations."""

from __future__ import annotations

from ...bundle import NO_TEXT, OwnText
from ...errors import InputError
from .conversation import Conversation
from .encoder import Prompt, PromptEncoder
from .encoder_decoder import Writer
from .generator import Generator, is_batch
from .graphs import Graphs
from .loop import Generation
from .options import GenerateOptions, Options
from .speech import Transcriber
from .stream import TextStream

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


def generator_for(graphs: Graphs, own: OwnText = NO_TEXT) -> Generator:
    """What generates with a bundle's model; :class:`InputError` for a task that does not write.

    ``own`` are the text files of an adapter, which take the place of the bundle's.
    """
    task = graphs.bundle.manifest.task
    if task == "text2text-generation":
        return Writer(graphs, own)
    if graphs.bundle.manifest.hears:
        return Transcriber(graphs, own)
    if task != "text-generation":
        raise InputError(
            f"{graphs.bundle.path} is for {task}; generating needs a causal language model or an encoder-decoder"
        )
    return Generator(graphs, own)
