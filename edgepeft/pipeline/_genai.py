"""``genai_config.json``: what lets onnxruntime-genai open a bundle of a causal language model as it is."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bundle import Manifest
from ..bundle.protobuf import Buffer
from ..errors import BundleError
from ..json_text import json_text
from ..quantize.recipes import preferred
from ..runtime.graph_parts import input_names, part_node
from ..runtime.twin_nodes import NODE, read_graph

NAME = "genai_config.json"
_KEY = re.compile(r"past_key_values\.\d+\.key")
#: Defaults of onnxruntime-genai's own model builder, where the model's files say nothing.
_SEARCH: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": True,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}


def genai_config(
    manifest: Manifest, config: Mapping[str, Any], generation: Mapping[str, Any], *, shared: bool
) -> dict[str, Any]:
    """The configuration, from the manifest, ``config.json`` and ``generation_config.json``.

    ``shared``: the graph's attention writes into a cache buffer of fixed size (GroupQueryAttention). The model's type is
    ``decoder`` for every architecture: which inputs there are, genai reads from the graph.
    """
    keys = [value for value in manifest.inputs if _KEY.fullmatch(value.name)]
    logits = next(value for value in manifest.outputs if value.name == "logits")
    text = config.get("text_config") or config
    heads, head_size = keys[0].shape[1], keys[0].shape[3]
    names = {value.name for value in manifest.inputs}
    fed = [name for name in ("input_ids", "attention_mask", "position_ids") if name in names]
    variant = next((name for name in preferred("genai") if name in manifest.variants), next(iter(manifest.variants)))
    context = manifest.max_length or text.get("max_position_embeddings")

    def token(name: str) -> Any:
        return generation[name] if generation.get(name) is not None else text.get(name)

    eos = token("eos_token_id")
    first = eos[0] if isinstance(eos, list) else eos
    ids = {
        "bos_token_id": token("bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": first if token("pad_token_id") is None else token("pad_token_id"),
    }
    return {
        "model": {
            **{name: value for name, value in ids.items() if value is not None},
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": manifest.variants[variant].file,
                "head_size": head_size,
                "hidden_size": text.get("hidden_size", text.get("n_embd")),
                "inputs": {
                    **{name: name for name in fed},
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": text.get("num_attention_heads", text.get("n_head")),
                "num_hidden_layers": len(keys),
                "num_key_value_heads": heads,
            },
            "type": "decoder",
            "vocab_size": logits.shape[-1],
        },
        "search": {
            **_SEARCH,
            **{name: generation[name] for name in _SEARCH if generation.get(name) is not None},
            "max_length": context,
            "past_present_share_buffer": shared,
        },
    }


def shares_buffers(model: Buffer) -> bool:
    """Whether every cache input of a graph, an ONNX file's bytes, goes into GroupQueryAttention alone.

    That takes one buffer as past and present.
    """
    _, _, held = read_graph(model)
    caches = [name for name in input_names(model, held) if name.startswith("past_key_values.")]
    nodes = [part_node(model, field) for field in held if field.number == NODE]
    uses = [(name, node.op) for node in nodes for name in node.inputs if name in caches]
    inside = any(name in caches for node in nodes for name in node.inner)
    once = sorted(caches) == sorted(name for name, _ in uses)
    return bool(uses) and once and not inside and {op for _, op in uses} == {"GroupQueryAttention"}


def note_genai(folder: Path, manifest: Manifest) -> bool:
    """Write ``genai_config.json`` of a causal language model below ``folder``; whether the file was changed."""
    if manifest.task != "text-generation":
        return False
    path = folder / NAME
    variant = next(iter(manifest.variants.values()))
    text = json_text(
        genai_config(
            manifest,
            _read(folder / "config.json"),
            _read(folder / "generation_config.json"),
            shared=_shares(folder, variant.file),
        ),
        indent=2,
    )
    text += "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.unlink(missing_ok=True)  # it may be a link to the old bundle's
    path.write_text(text, encoding="utf-8")
    return True


def _shares(folder: Path, file: str) -> bool:
    """:func:`shares_buffers` of a graph file, by its bytes alone; as it was noted before of one in ORT format.

    Where nothing was noted of that, no: separate buffers for past and present suit every graph.
    """
    if file.endswith(".ort"):
        return _read(folder / NAME).get("search", {}).get("past_present_share_buffer") is True
    with (folder / file).open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        try:
            return shares_buffers(mapped)
        except IndexError as error:
            raise BundleError(f"{folder / file} is not an ONNX graph: {error}; export the bundle again") from error


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
