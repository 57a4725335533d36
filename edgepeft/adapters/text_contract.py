"""An adapter's text beside its base's: what it changes, whether the base has rows for its tokens, what to say of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import AdapterMismatchError
from ..json_text import config_text
from .folder_text import CONFIG, GENERATION, TEMPLATE, TOKENIZER, FolderText, token_text

_SHOWN = 6


@dataclass(frozen=True)
class TextChanges:
    """The files that take the place of the base's for one adapter, by Hugging Face's names, and what they change, in words."""

    files: Mapping[str, str]
    notes: tuple[str, ...] = ()


class _Vocabulary:
    """The tokens of a ``tokenizer.json`` by text, and the tokenizer in one form, whichever version wrote it."""

    def __init__(self, text: str, where: str) -> None:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises no other type
            raise AdapterMismatchError(
                f"the tokenizer.json of {where} is not a tokenizer ({str(error)[:200]}): save it again with transformers"
            ) from error
        # What is set anew for each use.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        raw = json.loads(tokenizer.to_str())
        if (raw.get("post_processor") or {}).get("special_tokens") == {}:
            raw["post_processor"] = None  # transformers 5 writes one that puts nothing around a text
        self.form: dict[str, Any] = raw
        self.tokens: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)


def text_changes(base: FolderText, own: FolderText, rows: int | None, name: str) -> TextChanges:
    """What an adapter's folder changes of its base's text.

    Tokenizer and special tokens are the adapter's where it has a tokenizer; a template where it has one. Generation defaults
    are the base's with the adapter's over them. The end token of the adapter's tokenizer ends texts beside those of the base,
    unless the adapter has generation defaults that say what ends them.

    Args:
        base: The base's text.
        own: The adapter's.
        rows: How many tokens the base's embedding has rows for; ``None`` where that is not known.
        name: The adapter, for messages.

    Returns:
        The files that differ from the base's, whole, and a sentence for each difference.

    Raises:
        AdapterMismatchError: The adapter's tokenizer has tokens that the base has no rows for, or is damaged.
    """
    notes: list[str] = []
    whole = base
    if own.tokenizer == base.tokenizer:
        own = replace(own, tokenizer=None)
    if not own:
        return TextChanges({})
    mine = _Vocabulary(own.tokenizer, f"adapter {name!r}") if own.tokenizer is not None else None
    theirs = _Vocabulary(base.tokenizer, "the base") if base.tokenizer is not None else None
    if mine is not None and (theirs is None or mine.form != theirs.form):
        _check_rows(mine, rows, name)
        whole = replace(whole, tokenizer=own.tokenizer)
        notes.append(_tokenizer_note(mine, theirs))
    if own.config is not None and _words(own.config) != _words(base.config or {}):
        whole = replace(whole, config=own.config)
    if own.templates and dict(own.templates) != dict(base.templates):
        whole = replace(whole, templates=own.templates)
        notes.append(f"its chat template is used ({'the base has another' if base.templates else 'the base has none'})")
    known = mine or theirs
    tokens = {} if known is None else known.tokens
    whole = replace(whole, generation=_generation(base, own, tokens))
    notes += _special_notes(base, whole, own)
    return TextChanges(_files(base, whole), tuple(notes))


def _words(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``tokenizer_config.json`` says how texts become tokens: paths, classes and versions of the writer do not."""
    skip = {"name_or_path", "tokenizer_class", "tokenizer_file", "special_tokens_map_file", "transformers_version",
            "processor_class", "auto_map", "backend", "is_local", "local_files_only", "clean_up_tokenization_spaces",
            "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder", "model_max_length"}  # fmt: skip
    return {
        key: token_text(value) if key.endswith("_token") else value for key, value in config.items() if key not in skip
    }


def _check_rows(mine: _Vocabulary, rows: int | None, name: str) -> None:
    beyond = sorted((number, token) for token, number in mine.tokens.items() if rows is not None and number >= rows)
    if beyond:
        shown = ", ".join(repr(token) for _, token in beyond[:_SHOWN]) + (", …" if len(beyond) > _SHOWN else "")
        raise AdapterMismatchError(
            f"adapter {name!r}: its tokenizer has {len(beyond)} tokens that the base's embedding of {rows} rows has no place for "
            f"({shown}). It was trained over a base with a larger vocabulary: load that base, "
            f"model.resize_token_embeddings({beyond[-1][0] + 1}), save_pretrained(FOLDER), and export FOLDER with the adapter. "
            "Where the adapter does not use these tokens, remove the tokenizer files from its folder"
        )


def _tokenizer_note(mine: _Vocabulary, theirs: _Vocabulary | None) -> str:
    if theirs is None:
        return "its tokenizer is used (the base has none)"
    added = sorted((token for token in mine.tokens if token not in theirs.tokens), key=lambda token: mine.tokens[token])
    moved = sum(theirs.tokens.get(token, number) != number for token, number in mine.tokens.items())
    parts = []
    if added:
        shown = ", ".join(added[:_SHOWN]) + (", …" if len(added) > _SHOWN else "")
        parts.append(f"{len(added)} tokens that the base's lacks ({shown})")
    if moved:
        parts.append(f"{moved} tokens under other numbers than the base's")
    return f"its own tokenizer is used: {' and '.join(parts) or 'it cuts texts in another way than the base’s'}"


def _generation(base: FolderText, own: FolderText, tokens: Mapping[str, int]) -> Mapping[str, Any] | None:
    """The base's generation defaults with the adapter's over them, and the adapter's own end, pad and begin tokens."""
    found = {**(base.generation or {}), **(own.generation or {})}
    if own.config is not None:
        for name in ("eos_token", "pad_token", "bos_token"):
            token = own.special(name)
            number = tokens.get(token) if token is not None and token != base.special(name) else None
            if number is None or (own.generation or {}).get(f"{name}_id") is not None:
                continue
            before = found.get(f"{name}_id")
            if name != "eos_token":
                found[f"{name}_id"] = number
                continue
            ends = [] if before is None else before if isinstance(before, list) else [before]
            found["eos_token_id"] = [number, *(end for end in ends if end != number)]
    ignored = {"transformers_version", "_from_model_config"}
    same = {k: v for k, v in found.items() if k not in ignored} == {
        k: v for k, v in (base.generation or {}).items() if k not in ignored
    }
    return base.generation if same else found


def _special_notes(base: FolderText, whole: FolderText, own: FolderText) -> list[str]:
    notes = []
    for name, said in (
        ("eos_token", "end token (eos)"),
        ("pad_token", "pad token"),
        ("bos_token", "begin token (bos)"),
    ):
        mine, theirs = own.special(name), base.special(name)
        if own.config is not None and mine != theirs:
            notes.append(f"its {said} is {mine or 'none'}, the base's is {theirs or 'none'}")
    if own.generation is not None and whole.generation is not base.generation:
        before, after = base.generation or {}, whole.generation or {}
        changed = [
            f"{key} {after[key]}"
            for key in sorted(own.generation)
            if key != "transformers_version" and after.get(key) != before.get(key)
        ]
        if changed:
            notes.append(f"its generation defaults are used: {', '.join(changed[:_SHOWN])}")
    return notes


def _files(base: FolderText, whole: FolderText) -> dict[str, str]:
    files: dict[str, str] = {}
    if whole.tokenizer is not base.tokenizer and whole.tokenizer is not None:
        files[TOKENIZER] = whole.tokenizer
    if whole.config is not base.config or whole.templates is not base.templates:
        named = [{"name": name, "template": template} for name, template in whole.templates.items()]
        several = {"chat_template": named} if len(named) > 1 else {}
        files[CONFIG] = config_text({**(whole.config or {}), **several})
        if "default" in whole.templates:
            files[TEMPLATE] = whole.templates["default"]
    if whole.generation is not base.generation and whole.generation is not None:
        files[GENERATION] = config_text(dict(whole.generation))
    return files
