"""Chat templates, rendered as Hugging Face renders them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ...bundle import NO_TEXT, Bundle, OwnText
from ...errors import BundleError, InputError
from ...strict_json import kind
from ..files import read_object, read_text

Message = Mapping[str, Any]
#: Variables of a template beside the messages: ``tools``, ``documents``, ``enable_thinking``, …
TemplateArguments = Mapping[str, Any]
NO_ARGUMENTS: TemplateArguments = MappingProxyType({})
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A bundle's chat template.

    Rendered with jinja2's immutable sandbox, trimmed blocks, loop controls, ``raise_exception``, ``strftime_now`` and a
    ``tojson`` that leaves Unicode as it is: what templates are written for. A bundle is untrusted input: the sandbox keeps
    its template from reaching anything but the messages, and ends one that does not end (:mod:`.sandbox`).
    """

    def __init__(self, source: str, special: Mapping[str, str], where: str, tool_use: str | None = None) -> None:
        import jinja2
        from jinja2 import meta

        from .sandbox import MAX_SOURCE, TemplateEnvironment

        if len(source) > MAX_SOURCE:
            raise BundleError(
                f"the chat template in {where} has {len(source):,} characters, at most {MAX_SOURCE:,} are read"
            )
        environment = TemplateEnvironment(
            {"tojson": _tojson},
            {"raise_exception": _raise, "strftime_now": lambda form: datetime.datetime.now().strftime(form)},
        )
        self._where = where
        self._special = dict(special)
        #: Where the folder has a template of its own for calls with tools, that one, as transformers chooses.
        self._tool_use = None if tool_use is None else ChatTemplate(tool_use, special, f"{where} (tool_use)")
        try:
            self._template = environment.from_string(source)
            self._reads = meta.find_undeclared_variables(environment.parse(source))
        # Beside its own errors: Python's, over blocks nested too deep and numbers too long.
        except (jinja2.TemplateError, SyntaxError, RecursionError, ValueError, OverflowError, MemoryError) as error:
            raise BundleError(
                f"the chat template in {where} is not valid Jinja (line {getattr(error, 'lineno', '?')}): "
                f"{str(error)[:200]}; give a plain prompt instead (--raw, in Python chat=False)"
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        arguments: TemplateArguments = NO_ARGUMENTS,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The messages as the text the model was trained on, ready for the assistant to go on.

        Args:
            messages: What was said, each with a role and content.
            arguments: Further variables of the template: ``tools``, ``documents``, ``enable_thinking``, … Like transformers,
                a template that does not read one goes on without it; but not without tools or documents.
            add_generation_prompt: Whether the text ends where the assistant begins.

        Raises:
            InputError: The template refuses the messages (its own words are in the message), does not end, or does not read
                the tools or documents that it is given.
        """
        import jinja2

        if self._tool_use is not None and arguments.get("tools"):
            return self._tool_use.render(messages, arguments, add_generation_prompt=add_generation_prompt)
        for name in ("tools", "documents"):
            if arguments.get(name) and name not in self._reads:
                raise InputError(
                    f"the chat template in {self._where} does not read {name}: this model was not trained to be given any. Put "
                    "them into a message in the form that it knows"
                )

        from .sandbox import bounded

        try:
            with bounded(
                sum(len(value) for message in messages for value in message.values() if isinstance(value, str))
                + sum(len(json.dumps(value, default=str)) for value in arguments.values())
            ):
                return self._template.render(
                    **{
                        **self._special,
                        "tools": None,
                        "documents": None,
                        **arguments,
                        "messages": [dict(message) for message in messages],
                        "add_generation_prompt": add_generation_prompt,
                    }
                )
        except (
            jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
            MemoryError, AssertionError,
        ) as error:  # fmt: skip
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise InputError(
                f"the chat template in {self._where} cannot render these messages (roles: {roles[:200]}): {str(error)[:500]}. "
                "Change the messages, or give a plain prompt (--raw, in Python chat=False)."
            ) from error


def read_chat_template(bundle: Bundle, own: OwnText = NO_TEXT) -> ChatTemplate | None:
    """The template in ``chat_template.jinja`` or ``tokenizer_config.json``, an adapter's own or the bundle's; ``None`` without.

    Of several, the one named ``default`` is used, and ``tool_use`` where a call has tools.
    """
    config = read_object(bundle, "tokenizer_config.json", own)
    jinja: Any = read_text(bundle, "chat_template.jinja", own)
    name = "tokenizer_config.json" if jinja is None else "chat_template.jinja"
    path = bundle.file(own.path(name))
    declared = config.get("chat_template")
    source, named = (declared if jinja is None else jinja), {}
    if isinstance(declared, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in declared if isinstance(each, dict)}
        source = named.get("default") if jinja is None else jinja
    if source is None:
        return None
    if not isinstance(source, str):
        raise BundleError(
            f"the chat template in {path} is {kind(source)} where a text is expected; export the bundle again"
        )
    found = {name: value for name in _SPECIAL if (value := _token(config.get(name))) is not None}
    tool_use = named.get("tool_use")
    return ChatTemplate(source, found, str(path), tool_use if isinstance(tool_use, str) else None)


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
    from .sandbox import check_indent

    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=check_indent(indent), separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
