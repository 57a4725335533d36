"""The part of ``run`` for causal language models: options, streaming, what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cloup import option, option_group

from ..errors import InputError
from ..strict_json import read_json
from .show import print_json

if TYPE_CHECKING:
    from ..runtime import Generation, Runtime

#: The options of text generation, given to the command as further keyword arguments.
generation_options = option_group(
    "Text generation",
    option("--prompt", multiple=True, metavar="TEXT",
           help="What to answer; repeat for several (the same as a TEXT argument)."),
    option("--raw", is_flag=True, help="Go on from the text as it is, without the chat template."),
    option("--system", metavar="TEXT", help="System message before the prompt."),
    option("--max-new-tokens", type=int, metavar="N", show_default="256, or what the context leaves",
           help="Stop after so many tokens."),
    option("--stop", multiple=True, metavar="TEXT",
           help="Stop before this text, or at this special token; repeat for several."),
    option("--eos", multiple=True, metavar="TOKEN",
           help="A further token that ends the text, as the vocabulary has it or by number; repeat for several."),
    option("--template-arg", "template_arg", multiple=True, metavar="NAME=JSON",
           help="A variable of the chat template: tools, documents, enable_thinking, …; repeat for several."),
    option("--temperature", type=float, metavar="X", show_default="the model's, else greedy",
           help="Sample at this temperature; 0 is greedy."),
    option("--top-k", type=int, metavar="N", help="Sample among the N likeliest tokens."),
    option("--top-p", type=float, metavar="X",
           help="Sample among the likeliest tokens that make up this probability."),
    option("--repetition-penalty", type=float, metavar="X",
           help="Above 1, tokens that were there before become less likely."),
    option("--seed", type=int, metavar="N", help="Sample the same text every time."),
    option("--draft", type=click.Choice(["prompt"]),
           help="Look up drafts in prompt and answer, and verify several tokens at once: the same text, sooner where it "
           "repeats what was there."),
)  # fmt: skip


def refuse_generation(given: Mapping[str, Any], where: str) -> None:
    """:class:`InputError` where an option of text generation is given for another task (``where`` says which)."""
    for name, value in given.items():
        if value is not None and value is not False and value != ():
            raise InputError(f"--{name.replace('_', '-')} is for text generation; {where}")


def template_options(given: Sequence[str]) -> dict[str, Any]:
    """The variables of ``--template-arg NAME=JSON``; what is no JSON is a text, and ``@FILE`` a file of JSON."""
    found: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name.isidentifier() or not equals:
            raise InputError(f"--template-arg takes NAME=JSON, for example enable_thinking=false, found {each!r}")
        if value.startswith("@"):
            found[name] = read_json(Path(value[1:]), what=f"--template-arg {name}")
            continue
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    if not found:
        return {}
    tools, documents = found.pop("tools", None), found.pop("documents", None)
    return {"chat_template_kwargs": found, "tools": tools, "documents": documents}


def run_prompts(opened: Runtime, prompts: Sequence[str], given: Mapping[str, Any], as_json: bool) -> None:
    """Generate from prompts and print: one as it comes, several when they are done, with what it took on standard error."""
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("pairs of texts cannot be generated from; leave out --pair")
    own = ("prompt", "raw", "eos", "template_arg")
    options: dict[str, Any] = {name: value for name, value in given.items() if name not in own}
    options["eos"] = [int(token) if token.isdecimal() else token for token in given["eos"]]
    options |= template_options(given["template_arg"])
    if given["raw"]:
        options["chat"] = False
    if as_json:
        results = opened.generate(list(prompts), **options)
        print_json([{"prompt": prompt, **result.as_dict()} for prompt, result in zip(prompts, results, strict=True)])
        return
    if len(prompts) == 1:
        stream = opened.stream(prompts[0], **options)
        for piece in stream:
            click.echo(piece, nl=False)
        click.echo()
        click.echo(_took(stream.result), err=True)
        return
    for prompt, result in zip(prompts, opened.generate(list(prompts), **options), strict=True):
        click.secho(f"> {prompt}", bold=True)
        click.echo(result.text)
        click.echo(_took(result), err=True)


def _took(result: Generation) -> str:
    speed = f", {result.tokens_per_second:.1f} tokens/s" if result.tokens_per_second is not None else ""
    return (
        f"[{len(result.tokens)} tokens ({result.finish_reason}) after {result.prompt_tokens}; first after "
        f"{result.first_token_ms:.0f} ms{speed}]"
    )
