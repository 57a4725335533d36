"""How a bundle embeds texts, in a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bundle import Embedding


def embedding_text(embedding: Embedding) -> str:
    """Modules, size, limit and prompts."""
    said = f"{', '.join(embedding.modules)}: {embedding.dimension} numbers"
    if embedding.max_length is not None:
        said += f", texts cut to {embedding.max_length} tokens"
    named = [name for name, prompt in embedding.prompts.items() if prompt]
    if named:
        said += f", prompts {', '.join(named)}"
    if embedding.default_prompt is not None:
        said += f" (default {embedding.default_prompt})"
    return said
