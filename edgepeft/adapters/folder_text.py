"""What a folder says about text: tokenizer, special tokens, chat templates, generation defaults. Read without transformers.

Layouts that transformers writes, old and new: a template in ``tokenizer_config.json`` (one, or a list of named ones),
``chat_template.jinja``, ``chat_template.json`` (processors), ``additional_chat_templates/*.jinja``; special tokens in
``tokenizer_config.json`` or, before transformers 5, ``special_tokens_map.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AdapterError, EdgepeftError
from ..strict_json import kind, parse_json

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
_PROCESSOR_TEMPLATE, NAMED_TEMPLATES = "chat_template.json", "additional_chat_templates"
_SPECIAL_MAP = "special_tokens_map.json"

#: The largest tokenizers of public models (256k words) have 35 MB.
MAX_TEXT_BYTES = 128 * 2**20
_ADVICE = "save it again with transformers"

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class FolderText:
    """What a folder says about text; a part that it does not have is ``None`` or empty.

    ``config`` is ``tokenizer_config.json`` with the special tokens and without templates, which are in ``templates`` by
    name, the one that is used by default as ``default``.
    """

    tokenizer: str | None = None
    config: Mapping[str, Any] | None = None
    templates: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] | None = None

    def special(self, name: str) -> str | None:
        """A special token's text, ``eos_token`` for example; ``None`` where none is named."""
        return token_text((self.config or {}).get(name))

    def __bool__(self) -> bool:
        return bool(self.tokenizer or self.config or self.templates or self.generation)


NO_FOLDER_TEXT = FolderText()


def read_folder_text(folder: Path, error: type[EdgepeftError] = AdapterError) -> FolderText:
    """What the files of ``folder`` say about text.

    Args:
        folder: A model's or an adapter's folder.
        error: What is raised for a file that is damaged.

    Returns:
        What was found; empty for a folder that has no such file.

    Raises:
        EdgepeftError: As ``error``: a file is not JSON, not UTF-8, or holds something else than it should.
    """

    def read(name: str) -> str | None:
        path = folder / name
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise error(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_TEXT_BYTES:,} are read")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as wrong:
            raise error(f"{path} is not UTF-8 (byte {wrong.start}): {_ADVICE}") from wrong
        except OSError as wrong:
            raise error(f"cannot read {path}: {wrong.strerror or wrong}") from wrong

    named = tuple(sorted(path.name for path in (folder / NAMED_TEMPLATES).glob("*.jinja")))
    return folder_text(read, folder, error, named)


def folder_text(
    read: Callable[[str], str | None], where: Path, error: type[EdgepeftError], named: Sequence[str] = ()
) -> FolderText:
    """:func:`read_folder_text` with ``read`` giving the text of a file by its name, ``None`` where there is none.

    ``named`` are the files of ``additional_chat_templates``.
    """

    def an_object(name: str) -> dict[str, Any] | None:
        found = read(name)
        if found is None:
            return None
        value = parse_json(
            found, str(where / name), error=error, advice=_ADVICE, max_bytes=MAX_TEXT_BYTES, finite=False
        )
        if not isinstance(value, dict):
            raise error(f"{where / name} holds {kind(value)} where an object belongs: {_ADVICE}")
        return value

    config = an_object(CONFIG)
    templates = _templates((config or {}).get("chat_template"), where / CONFIG, error)
    if (processor := an_object(_PROCESSOR_TEMPLATE)) is not None:
        templates |= _templates(processor.get("chat_template"), where / _PROCESSOR_TEMPLATE, error)
    if (jinja := read(TEMPLATE)) is not None:
        templates["default"] = jinja
    for name in named:
        templates[Path(name).stem] = read(f"{NAMED_TEMPLATES}/{name}") or ""
    if config is not None:
        config.pop("chat_template", None)
    if (special := an_object(_SPECIAL_MAP)) is not None:
        config = {**{name: value for name, value in special.items() if name in SPECIAL}, **(config or {})}
    return FolderText(read(TOKENIZER), config, templates, an_object(GENERATION))


def _templates(found: Any, where: Path, error: type[EdgepeftError]) -> dict[str, str]:
    """Templates by name, from a text, a list of named ones, or an object."""
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list):
        pairs = [(each.get("name"), each.get("template")) if isinstance(each, dict) else (None, None) for each in found]
    elif isinstance(found, dict):
        pairs = list(found.items())
    else:
        raise error(f"{where}: chat_template is {kind(found)}; it is a text or a list of named texts. {_ADVICE}")
    named: dict[str, str] = {}
    for name, template in pairs:
        if not isinstance(name, str) or not isinstance(template, str):
            raise error(f"{where}: each of several chat templates has a name and a template, both texts. {_ADVICE}")
        named[name] = template
    return named


def token_text(value: Any) -> str | None:
    """A special token's text: written as it is, or as an object with ``content``."""
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None
