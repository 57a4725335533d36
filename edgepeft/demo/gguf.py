"""Causal language models whose only packaged form is GGUF, converted once to what Hugging Face writes.

The result has the numbers that the 4-bit file de-quantizes to, in float32: a base like any other from then on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import AssetError, MissingExtraError
from .fetch import derive

_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def smollm2() -> Path:
    """See :func:`edgepeft.demo.assets.smollm2`."""

    def make(folder: Path, source: Path) -> None:
        convert(source / "SmolLM2-135M-Instruct.Q4_1.gguf", folder, mend=_smollm_digits)

    return derive("smollm2", ("smollm2-gguf",), "1", (*_FILES, "chat_template.jinja"), make)


def gemma3_270m() -> Path:
    """See :func:`edgepeft.demo.assets.gemma3_270m`."""
    parts = tuple(f"gemma3-270m-gguf-{number}" for number in range(1, 5))

    def make(folder: Path, terms: Path, *sources: Path) -> None:
        whole = folder.parent / "gemma-3-270m-q4_k_m.gguf"
        join([next(source.glob("*.gguf.part*")) for source in sources], whole, _GEMMA_SHA256)
        convert(whole, folder)
        (folder / "GEMMA_TERMS.html").write_bytes((terms / "GEMMA_TERMS.html").read_bytes())

    return derive("gemma3-270m", ("gemma3-270m-terms", *parts), "1", (*_FILES, "GEMMA_TERMS.html"), make)


def join(parts: list[Path], whole: Path, sha256: str) -> None:
    """Write ``parts`` one after the other to ``whole``; :class:`AssetError` where that has not the given sha256."""
    digest = hashlib.sha256()
    with whole.open("wb") as sink:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            sink.write(content)
    if digest.hexdigest() != sha256:
        raise AssetError(
            f"{whole.name}, joined from {', '.join(part.name for part in parts)}, has sha256 {digest.hexdigest()}, "
            f"expected {sha256}; remove the asset's folders from the cache and fetch again"
        )


def convert(gguf: Path, folder: Path, *, mend: Callable[[Any], None] | None = None) -> None:
    """Write the model and tokenizer in ``gguf`` to ``folder`` as float32 safetensors and Hugging Face's JSON files.

    ``mend`` may correct the tokenizer first. Tied weights are stored once. Raises :class:`MissingExtraError` without
    the ``gguf`` package, :class:`AssetError` for a file that transformers cannot read.
    """
    try:
        import gguf as _needed  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"converting {gguf.name} needs {error.name}, which is not installed: pip install 'edgepeft[demo]'"
        ) from error
    from ..base.load import quiet

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise AssetError(f"transformers cannot read {gguf.name}: {type(error).__name__}: {error}") from error
        # What came from GGUF refuses to be saved; a model built from its config without that mark does not.
        config = type(loaded.config).from_dict(
            {
                key: value
                for key, value in loaded.config.to_dict().items()
                if key not in {"quantization_config", "_name_or_path", "_model_name_or_path"}
            }
        )
        with torch.device("meta"):
            model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(folder)
        if mend is not None:
            mend(tokenizer)
        tokenizer.model_max_length = config.max_position_embeddings
        for key in ("is_local", "local_files_only", "name_or_path"):  # about this machine, not about the tokenizer
            tokenizer.init_kwargs.pop(key, None)
        tokenizer.save_pretrained(folder)


def _smollm_digits(tokenizer: Any) -> None:
    """SmolLM splits digits one by one *before* anything else, which transformers' GGUF reader leaves out.

    Without it, two spaces before a number are two tokens where the model was trained on one.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
