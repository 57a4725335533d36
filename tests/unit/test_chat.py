"""Chat templates: rendered as Hugging Face renders them, in a sandbox, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from causal import CHAT

from edgepeft.bundle import Bundle, hash_file
from edgepeft.errors import BundleError, InputError
from edgepeft.runtime.generation.chat import ChatTemplate, check_messages, read_chat_template

MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b> & kind."},
    {"role": "user", "content": "  Grüße, 日本! "},
    {"role": "assistant", "content": "Hi", "tool_calls": [{"name": "f", "arguments": {"a": 1, "ü": None}}]},
    {"role": "user", "content": "And?"},
]
TEMPLATES = {
    "plain": CHAT,
    "tokens and namespace": (
        "{{ bos_token }}{% set ns = namespace(n=0) %}\n{%- for m in messages %}\n    {% set ns.n = ns.n + 1 %}\n"
        "{{ ns.n }}:{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    ),
    "tojson": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% break %}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}",
    "undefined": "{{ nothing }}{% if tools %}T{% endif %}{{ messages[0]['content'] }}",
    "date": "{{ strftime_now('%Y') | length }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_hugging_face_renders(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos_token": "<s>", "eos_token": "</s>"}
    for prompt in (True, False):
        (wanted,), _ = render_jinja_template(
            [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=prompt, **special
        )
        template = ChatTemplate(TEMPLATES[name], special, "here")
        assert template.render(MESSAGES, add_generation_prompt=prompt) == wanted


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "9"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[0].content.nope() }}", "nope"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set x = messages.append(1) %}", "unsafe"),
    ],
)
def test_a_template_that_fails(source: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(source, {}, "b/chat_template.jinja").render(MESSAGES)
    for part in (says, "b/chat_template.jinja", "system, user, assistant, user", "--raw"):
        assert part in str(caught.value)


def test_a_template_that_is_not_jinja() -> None:
    with pytest.raises(BundleError, match=r"tokenizer_config.json is not valid Jinja \(line 2\)"):
        ChatTemplate("\n{% for %}", {}, "tokenizer_config.json")


TOOL = {"name": "tool", "template": "T"}


def bundle_of(folder: Path, **files: Any) -> Any:
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    manifest: Any = SimpleNamespace(files={path.name: hash_file(path) for path in folder.iterdir()})
    return Bundle(path=folder, manifest=manifest)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"tokenizer_config__json": {"bos_token": "<s>"}}, None),
        ({"tokenizer_config__json": {"chat_template": "A{{ bos_token }}", "bos_token": {"content": "<s>"}}}, "A<s>"),
        ({"tokenizer_config__json": {"chat_template": "A"}, "chat_template__jinja": "B"}, "B"),
        ({"tokenizer_config__json": {"chat_template": [TOOL, {"name": "default", "template": "D"}]}}, "D"),
        ({"tokenizer_config__json": {"chat_template": [TOOL]}}, None),
    ],
)  # fmt: skip
def test_where_the_template_is(files: dict[str, Any], wanted: str | None, tmp_path: Path) -> None:
    found = read_chat_template(bundle_of(tmp_path, **files))
    assert (found.render(MESSAGES) if found else None) == wanted


def test_a_configuration_that_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer_config\.json is not JSON"):
        read_chat_template(bundle_of(tmp_path, tokenizer_config__json="{"))


@pytest.mark.parametrize(
    "messages", [[], ["Hello"], [{"content": "no role"}], [{"role": "user"}], [{"role": 1, "content": ""}]]
)
def test_messages_that_are_refused(messages: Any) -> None:
    with pytest.raises(InputError, match="message"):
        check_messages(messages)
