"""What is read of a bundle to run one of its variants."""

from __future__ import annotations

from typing import Literal

from .manifest import Manifest

#: How slots arrive: as initializers that a run overrides, or as plain inputs.
Slots = Literal["overridable", "input"]

#: What Hugging Face writes beside a model and a runtime reads, where the bundle has it.
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def variant_graphs(manifest: Manifest, variant: str, slots: Slots = "overridable") -> tuple[str, ...]:
    """The graphs of a variant: one, or an encoder and its decoder.

    With ``slots="input"`` those whose slots are plain inputs, where the variant has them beside its own.
    """
    entry = manifest.variants[variant]
    pairs = ((entry.file, entry.input_file), (entry.decoder_file, entry.decoder_input_file))
    chosen = (other if slots == "input" and other is not None else own for own, other in pairs)
    return tuple(graph for graph in chosen if graph is not None)


def variant_files(manifest: Manifest, variant: str, slots: Slots = "overridable") -> tuple[str, ...]:
    """The graphs of a variant and their weights."""
    return (*variant_graphs(manifest, variant, slots), *manifest.variants[variant].data)


def loaded_files(manifest: Manifest, variant: str, slots: Slots = "overridable") -> tuple[str, ...]:
    """Every file that running a variant reads: graphs, weights, tokenizer, configuration, template, adapters, pooling.

    With ``slots="input"`` also the base's own numbers for the slots.
    """
    defaults = manifest.slot_defaults if slots == "input" else None
    return (
        *variant_files(manifest, variant, slots),
        *(name for name in TEXT_FILES if name in manifest.files),
        *dict.fromkeys(
            file
            for adapter in manifest.on(variant).adapters.values()
            for file in (adapter.onnx_adapter, *adapter.text.values())
        ),
        *dict.fromkeys(embedding.graph for embedding in manifest.embeddings),
        *(() if defaults is None else (defaults,)),
    )
