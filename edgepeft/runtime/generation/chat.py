"""Chat templates, rendered as Hugging Face renders them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...bundle import Bundle
from ...errors import BundleError, InputError
from ..files import read_object, read_text

Message = Mapping[str, Any]
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A bundle's chat template.

    Rendered with jinja2's immutable sandbox, trimmed blocks, loop controls, ``raise_exception``, ``strftime_now`` and a
    ``tojson`` that leaves Unicode as it is: what templates are written for. A bundle is untrusted input, and the sandbox
    keeps its template from reaching anything but the messages.
    """

    def __init__(self, source: str, special: Mapping[str, str], where: str) -> None:
        import jinja2
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """``{% generation %}`` marks what the assistant says, for training; here its content is simply rendered."""

            tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._where = where
        self._special = dict(special)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise BundleError(
                f"the chat template in {where} is not valid Jinja (line {getattr(error, 'lineno', '?')}): {error}; give a "
                "plain prompt instead (--raw, in Python chat=False)"
            ) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The messages as the text the model was trained on, ready for the assistant to go on.

        Raises :class:`InputError` with the template's own words where it refuses the messages.
        """
        import jinja2

        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise InputError(
                f"the chat template in {self._where} cannot render these messages (roles: {roles}): {error}. Change the "
                "messages, or give a plain prompt (--raw, in Python chat=False)."
            ) from error


def read_chat_template(bundle: Bundle) -> ChatTemplate | None:
    """The bundle's template from ``chat_template.jinja`` or ``tokenizer_config.json``; ``None`` where it has none."""
    config = read_object(bundle, "tokenizer_config.json")
    source: Any = read_text(bundle, "chat_template.jinja")
    path = bundle.file("tokenizer_config.json" if source is None else "chat_template.jinja")
    if source is None:
        source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((each.get("template") for each in source if each.get("name") == "default"), None)
    if source is None:
        return None
    found = {name: value for name in _SPECIAL if (value := _token(config.get(name))) is not None}
    return ChatTemplate(source, found, str(path))


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what no template can render."""
    if not isinstance(messages, Sequence):
        raise InputError(
            f"a prompt is a text, a list of messages or a numpy array of token ids, found {type(messages).__name__}"
        )
    if not messages:
        raise InputError("no messages; give at least one, for example {'role': 'user', 'content': 'Hello'}")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise InputError(
                f"message {place + 1} is {message!r}; a message is a mapping with a role (system, user, assistant) and content"
            )


def _token(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
            sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
