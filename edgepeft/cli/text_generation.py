"""The part of ``run`` for causal language models: options, streaming, what it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InputError
from .options import option
from .show import print_json

if TYPE_CHECKING:
    from ..runtime import Generation, Runtime

F = TypeVar("F", bound=Callable[..., Any])

_SECTION = "Text generation"
_OPTIONS = (
    option("--prompt", section=_SECTION, multiple=True, metavar="TEXT",
           help="What to answer; repeat for several (the same as a TEXT argument)."),
    option("--raw", section=_SECTION, is_flag=True, help="Go on from the text as it is, without the chat template."),
    option("--system", section=_SECTION, metavar="TEXT", help="System message before the prompt."),
    option("--max-new-tokens", section=_SECTION, type=int, metavar="N", show_default="256, or what the context leaves",
           help="Stop after so many tokens."),
    option("--stop", section=_SECTION, multiple=True, metavar="TEXT", help="Stop before this text; repeat for several."),
    option("--temperature", section=_SECTION, type=float, metavar="X", show_default="the model's, else greedy",
           help="Sample at this temperature; 0 is greedy."),
    option("--top-k", section=_SECTION, type=int, metavar="N", help="Sample among the N likeliest tokens."),
    option("--top-p", section=_SECTION, type=float, metavar="X",
           help="Sample among the likeliest tokens that make up this probability."),
    option("--repetition-penalty", section=_SECTION, type=float, metavar="X",
           help="Above 1, tokens that were there before become less likely."),
    option("--seed", section=_SECTION, type=int, metavar="N", help="Sample the same text every time."),
)  # fmt: skip


def generation_options(command: F) -> F:
    """The options of text generation, given to ``command`` as further keyword arguments."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def refuse_generation(given: Mapping[str, Any], where: str) -> None:
    """:class:`InputError` where an option of text generation is given for another task (``where`` says which)."""
    for name, value in given.items():
        if value is not None and value is not False and value != ():
            raise InputError(f"--{name.replace('_', '-')} is for text generation; {where}")


def run_prompts(opened: Runtime, prompts: Sequence[str], given: Mapping[str, Any], as_json: bool) -> None:
    """Generate from prompts and print: one as it comes, several when they are done, with what it took on standard error."""
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("pairs of texts cannot be generated from; leave out --pair")
    options: dict[str, Any] = {name: value for name, value in given.items() if name not in ("prompt", "raw")}
    if given["raw"]:
        options["chat"] = False
    if as_json:
        found = opened.generate(list(prompts), **options)
        print_json([{"prompt": prompt, **result.as_dict()} for prompt, result in zip(prompts, found, strict=True)])
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
