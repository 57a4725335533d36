"""The files beside a model that travel with a bundle: tokenizer, template, pre-processing of images and sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import CaptureError, InputError, MissingExtraError
from ..scratch import scratch_folder
from .remote_code import refuse_remote_code, trusted

#: Files that are copied as they are.
KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    # How images, sound and videos become numbers: sizes, crops, means.
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
#: Files that say that a folder has a tokenizer, where it has no tokenizer.json.
_VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "source.spm",
    "tekken.json",
    "bpe.codes",
    "vocab.bpe",
    "entity_vocab.json",
    "sentencepiece.model",
    "prophetnet.tokenizer",
)
#: Texts that a converted tokenizer is compared on: what conversions get wrong.
CORPUS = (
    "The quick brown fox jumps over 13 lazy dogs.",
    " leading space,  two spaces,\ta tab\nand a line",
    "trailing space ",
    "Ünïcödé naïve café, ﬁ ligature, Ⅷ, ①, e\u0301",
    "日本語のテキスト、中文文本，한국어 텍스트",
    "emoji 👍🏽 👩‍👩‍👧 🇩🇪 and \u200b zero width",
    "नमस्ते दुनिया, مرحبا بالعالم, שלום, Привет, γειά",
    "don't, it's, we'll — “quotes”… 3.14e-5 & <b>html</b>",
    "def f(x):\n    return x**2  # code",
    "ALL CAPS and MiXeD",
    "",
    " ",
)


def model_files(source: str, outer: str, *, texts: bool = True) -> dict[str, bytes]:
    """The files of a model's source that a bundle keeps, by name, with a ``tokenizer.json`` where its tokenizer has one.

    A tokenizer without one (``vocab.json`` and ``merges.txt``, ``vocab.txt``, a sentencepiece model) is converted by transformers,
    and the result is compared with what transformers itself makes of texts.

    Args:
        source: The folder or Hugging Face id that holds the model.
        outer: The folder that holds ``source``, of a model that sentence-transformers saved; else the same.
        texts: Whether the model reads or writes texts; without, a tokenizer is not needed and not converted.

    Raises:
        InputError: The tokenizer has no fast form, or cannot be loaded.
        MissingExtraError: Reading a sentencepiece model needs the package of that name.
        CaptureError: The converted tokenizer gives other tokens.
    """
    files = {**_found(outer, KEPT), **_found(source, KEPT)} if outer != source else _found(source, KEPT)
    if "tokenizer.json" in files or not texts:
        return files
    vocabularies = _found(source, _VOCABULARIES)
    if not vocabularies and "tokenizer_config.json" not in files:
        return files
    return {**files, **_converted(source, tuple(vocabularies))}


def _found(source: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """Those of ``names`` that a local folder or the hub's cache has."""
    folder = Path(source)
    if folder.is_dir():
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    from transformers.utils import cached_file

    files = {}
    for name in names:
        path = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if path is not None:
            files[name] = Path(path).read_bytes()
    return files


def _converted(source: str, vocabularies: tuple[str, ...]) -> dict[str, bytes]:
    """``tokenizer.json`` and the files that transformers writes with it; none for a folder that names a tokenizer and has none."""
    from transformers import AutoTokenizer

    pieces = [name for name in vocabularies if name.endswith((".model", ".spm"))]
    if pieces and find_spec("sentencepiece") is None:
        raise MissingExtraError(
            f"{source} has {pieces[0]} and no tokenizer.json: reading it needs: pip install sentencepiece"
        )

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted())
    except ImportError as error:  # a package that reads this kind of file
        raise InputError(
            f"{source} has no tokenizer.json, and reading its tokenizer needs another package: {_first(error)}"
        ) from error
    except Exception as error:  # transformers and tokenizers raise many types over files that do not belong together
        refuse_remote_code(source, error)
        if not vocabularies:
            return {}  # its files are elsewhere, or were left out
        raise InputError(
            f"{source} has no tokenizer.json, and transformers cannot make one of its files: {_first(error)}. Save it once with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER) where that works, or remove the vocabulary files to export "
            "without a tokenizer"
        ) from error
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{source}: its tokenizer ({name}) has no fast form, so there is no tokenizer.json that a device could run. Remove "
            f"{', '.join(vocabularies) or 'tokenizer_config.json'} to export without a tokenizer, and give the bundle token ids"
        )
    with scratch_folder("tokenizer") as scratch:
        tokenizer.save_pretrained(scratch)
        files = _found(scratch, KEPT)
    if "tokenizer.json" not in files:
        raise InputError(f"{source}: transformers wrote no tokenizer.json for its tokenizer ({name})")
    check_same_tokens(tokenizer, files["tokenizer.json"], source)
    return files


def _first(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_same_tokens(tokenizer: Any, converted: bytes, source: str) -> None:
    """Refuse a ``tokenizer.json`` that gives other tokens than transformers' tokenizer does.

    Texts in several scripts are compared, with emoji and spaces, and the tokenizer's own added and special tokens inside them.

    Raises:
        CaptureError: Names the first text that differs.
    """
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(converted.decode("utf-8"))
    plain.no_padding()
    plain.no_truncation()
    added = [str(token) for token in list(tokenizer.get_added_vocab())[:32]]
    texts = [*CORPUS, *(f"before {token} after{token}" for token in added)]
    for text in texts:
        expected, found = tokenizer(text)["input_ids"], plain.encode(text).ids
        if list(expected) != list(found):
            raise CaptureError(
                f"{source}: the tokenizer.json made of its tokenizer ({type(tokenizer).__name__}) gives {found[:12]} for {text!r}, "
                f"transformers gives {list(expected)[:12]}. Export with a folder that has a tokenizer.json of its own"
            )


def lower_cased(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """``files`` with a tokenizer that puts texts into lower case before all else, as ``do_lower_case`` asks."""
    if "tokenizer.json" not in files:
        return dict(files)
    tokenizer = json.loads(files["tokenizer.json"])
    normalizer = tokenizer.get("normalizer")
    steps = normalizer["normalizers"] if normalizer and normalizer.get("type") == "Sequence" else [normalizer]
    steps = [step for step in steps if step is not None]
    if not lowers_case(files):
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
    return {**files, "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False, allow_nan=False).encode("utf-8")}


def lowers_case(files: Mapping[str, bytes]) -> bool:
    """Whether a tokenizer puts texts into lower case already."""
    normalizer = json.loads(files["tokenizer.json"]).get("normalizer") if "tokenizer.json" in files else None
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    return any(step.get("type") == "Lowercase" or step.get("lowercase") is True for step in steps)
