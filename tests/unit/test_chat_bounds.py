"""Chat templates that do not end, or whose text has no bound: refused, and soon."""

from __future__ import annotations

import time

import pytest

from edgepeft.errors import BundleError, InputError
from edgepeft.runtime.generation.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hello you"}]

ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop over a literal": "{% for a in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3,
    "conditions": "{% for a in range(99999) if a < 0 %}{% endfor %}" * 500,
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that doubles": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "a doubled text": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a doubled list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a squared number": "{% set n = namespace(x=99) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a doubled block": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set b %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = b %}{% endfor %}",
    "a product": "{{ 'ab' * 999999999 }}",
    "a product from the left": "{{ 999999999 * ['ab'] }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a width": "{{ 'ab' | center(999999999) }}",
    "a width of a method": "{{ 'ab'.ljust(999999999) }}",
    "a width in a format": "{{ '{:>999999999}'.format(1) }}",
    "a width in a width": "{{ '{:{}}'.format('a', '99' ~ '9999999') }}",
    "a width in an old format": "{{ '%999999999d' % 1 }}",
    "a width from a tuple": "{{ '%*d' % (999999999, 1) }}",
    "a width in a filter": "{{ '%999999999d' | format(1) }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(9999999) }}",
    "an indent": "{{ ('a\n' * 9999) | indent(99999) }}",
    "an indent of JSON": "{{ [1, [2]] | tojson(indent=999999999) }}",
    "slices": "{{ 'ab' | slice(999999999) | list | length }}",
    "batches": "{{ 'ab' | batch(999999999, 'x') | list | length }}",
    "a replacement": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "a replacement by a filter": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "a replacement of nothing": "{{ ('a' * 99999) | replace('', 'b' * 99999) }}",
    "a joined list": "{{ (['a' * 99999] * 99999) | join }}",
    "a joined list by a method": "{{ ''.join(['a' * 99999] * 99999) }}",
    "an old join": "{{ ('b' * 99999).join(['a'] * 99999) }}",
    "a translation": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "a sum of lists": "{{ ([[1] * 999] * 9999) | sum(start=[]) | length }}",
    "mapped": "{{ range(99999) | map('string') | map('center', 99999) | join }}",
}  # fmt: skip


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_templates_without_an_end(source: str) -> None:
    start = time.monotonic()
    with pytest.raises((InputError, BundleError), match=r"chat template in here.*plain prompt"):
        ChatTemplate(source, {}, "here").render(MESSAGES)
    assert time.monotonic() - start < 30  # not a speed: without an end this never returns


@pytest.mark.parametrize(
    "source",
    [
        "(" * 5000 + "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for a in b %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "9" * 6000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "{{ " + "[" * 300 + "]" * 300 + " }}",
        "{% if",
        "x" * (2**20 + 1),
        "{{ 'a' | urlize }}",
    ],
)
def test_templates_that_do_not_compile(source: str) -> None:
    with pytest.raises(BundleError, match="chat template in here"):
        ChatTemplate(source, {}, "here")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }}{% endfor %}", "1/1 True"),
        ("{% for a in range(3) %}{{ a }}{% if not loop.last %}, {% endif %}{% endfor %}", "0, 1, 2"),
        ("{% for a in messages | map(attribute='role') %}{{ loop.revindex }}{{ a }}{% endfor %}", "1user"),
        ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=Hello you;"),
        ("{{ messages | join(', ', attribute='role') }}{{ ['a', 1] | join('-') }}{{ '+'.join(['a', 'b']) }}", "usera-1a+b"),
        ("{{ 'a' ~ 1 ~ none }}{{ 'ab' * 2 }}{{ 2 ** 10 }}{{ [1] + [2] }}{{ '%s-%02d' % ('x', 3) }}", "a1Noneabab1024[1, 2]x-03"),
        ("{{ '{:>4}|{}'.format('a', 'b') }}{{ '%s' | format('x') }}", "   a|bx"),
        ("{{ 'aba' | replace('a', 'xx') }}{{ 'aba'.replace('b', '') }}{{ [1, 2] | sum }}", "xxbxxaa3"),
        ("{{ {'a': [1, 'é']} | tojson(indent=1) }}", '{\n "a": [\n  1,\n  "é"\n ]\n}'),
        ("{{ missing }}|{% for a in missing %}x{% else %}none{% endfor %}", "|none"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}{{ f(messages | length) }}", "<a><1>"),
        ("{% for a in [[1], [2]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}", "12"),
        ("{% for a in range(5) %}{% if a == 3 %}{% break %}{% endif %}{{ a }}{% endfor %}", "012"),
    ],
)  # fmt: skip
def test_what_templates_do_is_as_it_was(source: str, text: str) -> None:
    """Against what jinja2's sandbox renders without our bounds."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    assert ChatTemplate(source, {}, "here").render(MESSAGES) == text
    if "tojson" not in source:
        plain = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        assert plain.from_string(source).render(messages=MESSAGES) == text


def test_long_messages_are_rendered() -> None:
    source = "{% for m in messages %}{% set c = m.content | trim %}{{ m.role ~ ': ' ~ c }}{% endfor %}"
    content = "word " * 1_000_000 + "end"
    assert ChatTemplate(source, {}, "here").render([{"role": "user", "content": content}]) == f"user: {content}"
