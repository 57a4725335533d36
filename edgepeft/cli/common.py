"""What every command shares: grouped options, and errors as exit codes."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import EdgepeftError, InputError, MissingExtraError
from ..terminate import ended_by_sigterm

if TYPE_CHECKING:
    from ..data import Examples

F = TypeVar("F", bound=Callable[..., Any])

#: Exit code of a bug, which must not look like a failed gate (1).
BUG = 70
#: Modules that only an extra installs.
_EXTRAS = {"train": {"accelerate", "datasets"}, "export": {"torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript",
                    "optimum", "requests", "safetensors", "ml_dtypes", "huggingface_hub"}}  # fmt: skip


class Option(click.Option):
    """An option that ``--help`` lists under a heading of its own."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose ``--help`` groups options by their section; those without one come last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section, in the order in which the options name them."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        last = sections.pop("Options", [])
        for title, records in (*sections.items(), ("Options", last)):
            with formatter.section(title):
                formatter.write_dl(records)


class Group(click.Group):
    """Commands in the order in which a user meets them."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        return list(self.commands)


def option(*names: str, section: str = "Options", **kwargs: Any) -> Callable[[F], F]:
    """``click.option`` with a section, and with the default shown where there is one."""
    kwargs.setdefault("show_default", kwargs.get("default") is not None and not kwargs.get("is_flag"))
    return click.option(*names, cls=Option, section=section, **kwargs)


def path_option(*names: str, **kwargs: Any) -> Callable[[F], F]:
    """An option that takes a path."""
    return option(*names, type=click.Path(path_type=Path), **kwargs)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
force_option = click.option(
    "--force", is_flag=True, help="Accept a foreign adapter whose base_model_name_or_path names another base."
)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
lock_option = option(
    "--lock-timeout",
    type=click.FloatRange(min=0, max=86_400),
    default=60.0,  # bundle.LOCK_TIMEOUT, which a look at --help need not import
    metavar="SECONDS",
    help="How long to wait for another command that changes the same bundle.",
)
threads_option = option("--threads", type=click.IntRange(min=1), metavar="N", help="ONNX Runtime's intra-op threads.")
text_option = option("--text", section="Data", default="text", metavar="COLUMN", help="Column of the text.")
label_option = option("--label", section="Data", default="label", metavar="COLUMN", help="Column of the label.")
pair_option = option("--pair", section="Data", metavar="COLUMN", help="Column of a second text, for pairs.")


calibration_option = option(
    "--data",
    section="Data",
    multiple=True,
    metavar="NAME=FILE",
    help="Texts (.csv, .tsv, .jsonl) of an adapter, '*=FILE' for all: what w8a16 measures activations with. May be repeated.",
)


def calibration_texts(data: tuple[str, ...], text: str, pair: str | None) -> dict[str, Examples]:
    """The ``--data NAME=FILE`` pairs as texts without labels."""
    from ..data import read_examples

    return {name: read_examples(path, text=text, label=None, pair=pair) for name, path in named(data, "--data").items()}


def guarded(command: F) -> F:
    """Turn what a command raises into a message on standard error and an exit code.

    2 for :class:`EdgepeftError` and what the system refuses (with ``--json`` also ``{"error": …}`` on standard output),
    130 for Ctrl-C, 143 for SIGTERM, 141 where the reader of our output went away, 70 with a traceback for a bug.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with ended_by_sigterm():
                result = command(*args, **kwargs)
            sys.stdout.flush()
            return result
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            # Python flushes standard output once more at exit, into a pipe that nobody reads.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except KeyboardInterrupt:
            click.echo("Interrupted; bundles are as they were.", err=True)
            sys.exit(130)
        except (
            Exception
        ) as error:  # the last handler of the process: a message for the user, or a bug with its traceback
            said = _as_edgepeft(error)
            if said is None:
                traceback.print_exc()
                click.secho("This is a bug in edgepeft: please report it with the lines above.", err=True, fg="red")
                sys.exit(BUG)
            if kwargs.get("as_json"):
                print_json({"error": str(said), "type": type(said).__name__})
            click.secho(f"Error: {said}", err=True, fg="red")
            sys.exit(2)

    return wrapper  # type: ignore[return-value] # functools.wraps keeps the signature


def _as_edgepeft(error: Exception) -> EdgepeftError | None:
    """``error`` as one of ours: itself, a missing extra, or what the operating system refused; else ``None``."""
    if isinstance(error, EdgepeftError):
        return error
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in _EXTRAS.items() if module in modules), None)
        if extra is not None:
            return MissingExtraError(
                f"this command needs {module}, which is not installed: pip install 'edgepeft[{extra}]'"
            )
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return None


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    click.echo(json.dumps(value, indent=1, default=str))


def named(values: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` pairs of a repeated option; a name given twice or a missing ``=`` is an error."""
    found: dict[str, str] = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or not name or not rest:
            raise InputError(f"{option} {value!r}: expected NAME=PATH, for example {option} reviews=./reviews-lora")
        if name in found:
            raise InputError(f"{option}: the name {name!r} is given twice")
        found[name] = rest
    return found


def parse_weights(values: Sequence[str]) -> dict[str, float]:
    """``NAME=WEIGHT`` pairs of a blend; a name given twice or a weight that is no number is an error."""
    found: dict[str, float] = {}
    for value in values:
        name, separator, weight = value.partition("=")
        if not separator or not name or not weight:
            raise InputError(f"{value!r}: expected NAME=WEIGHT, for example reviews=0.7")
        if name in found:
            raise InputError(f"adapter {name!r} is given twice")
        try:
            found[name] = float(weight)
        except ValueError as error:
            raise InputError(f"{value!r}: {weight!r} is not a number") from error
    return found
